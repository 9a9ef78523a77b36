"""A run that is killed three times is one run of W&B and of MLflow, with every step once. Skipped where the packages lack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymat.storage.store import Store
from raymat.train.observability.metrics_log import read_metrics
from tests.support.kit import starts, wait_for
from tests.support.paths import ROOT

pytestmark = pytest.mark.chaos
STEPS = 120
SECRET = "cAn4ry"
VARIABLES = {
    "RAY_ADDRESS": "local",
    "WANDB_MODE": "offline",
    "WANDB_API_KEY": SECRET * 8,
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_TRACKING_PASSWORD": SECRET,
}


def command(storage: Path) -> list[str]:
    words = [sys.executable, "-m", "raymat", "base", "--name", "run", "--storage", str(storage)]
    words += ["--synthetic", "64", "--backbone", "mobilenetv2", "--resolution", "48"]
    words += ["--crop", "32:48", "--batch-size", "8", "--device", "cpu", "--workers", "1"]
    words += ["--log-loss-interval", "1", "--checkpoint-interval", "10", "--steps", str(STEPS)]
    words += ["--epoch-examples", "1000000", "--valid-interval", "30", "--valid-examples", "4"]
    return [*words, "--logger", "wandb", "--logger", "mlflow"]


def train_with_three_kills(storage: Path) -> Store:
    """Kill rank 0 after the first commit of each of three attempts; between the logger's flush and the commit, or not."""
    store, variables = Store.open(str(storage), "run"), os.environ | VARIABLES
    variables["MLFLOW_TRACKING_URI"] = f"file://{storage}/mlflow"
    with (storage / "log").open("w") as log:
        driver = subprocess.Popen(command(storage), env=variables, stdout=log, stderr=log, cwd=ROOT)
    try:
        for attempt in (1, 2, 3):
            wait_for(store, "commit", lambda e, attempt=attempt: e["attempt"] == attempt)  # type: ignore[misc]
            time.sleep(0.3 * attempt)
            os.kill(starts(store)[-1]["ranks"][0]["pid"], signal.SIGKILL)
        assert driver.wait(600) == 0, (storage / "log").read_text()
    finally:
        driver.kill()
    assert len(starts(store)) == 4
    return store


def wandb_rows(folder: Path) -> list[dict[str, Any]]:
    """The history in the newest offline folder, as `wandb sync` reads it."""
    from wandb.proto import wandb_internal_pb2

    newest = sorted(folder.glob("wandb/offline-run-*"))[-1]
    (file,) = newest.glob("*.wandb")
    rows = []
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def records(log: bytes) -> Iterator[bytes]:
    """Those of a log in LevelDB's form, behind a head of 7 bytes: parts with checksum (4), length (2) and type (1: whole, 2 to 4:
    first, middle, last), in blocks of 32 kB whose last 6 bytes are never a part's head."""
    at, whole = 7, b""
    while at < len(log):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        whole += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.mark.timeout(1500)
def test_every_step_is_in_each_service_once_and_no_key_is_stored(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    mlflow = pytest.importorskip("mlflow")
    store = train_with_three_kills(tmp_path)
    rows = read_metrics(store)
    losses = {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}
    every = [*range(1, STEPS + 1)]
    assert sorted(losses) == every

    shown = wandb_rows(tmp_path / "run")
    trained = [row for row in shown if "loss" in row]
    assert [row["_step"] for row in trained] == every
    assert {row["_step"]: row["loss"] for row in trained} == losses
    validated = [row["valid_step"] for row in shown if "valid_loss" in row]
    assert validated == [row["step"] for row in rows if row["kind"] == "valid"]

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = mlflow.MlflowClient(f"file://{tmp_path}/mlflow")
    (experiment,) = [e for e in client.search_experiments() if e.name == "raymat"]
    (there,) = client.search_runs([experiment.experiment_id])
    assert there.info.status == "FINISHED"
    assert there.data.params["backbone"] == "mobilenetv2"
    for key in ("loss", "epoch", "lr/backbone", "speed/step_seconds"):
        steps = Counter(metric.step for metric in client.get_metric_history(there.info.run_id, key))
        assert steps == dict.fromkeys(every, 1), key
    found = {m.step: m.value for m in client.get_metric_history(there.info.run_id, "loss")}
    assert found == losses
    valid = [m.step for m in client.get_metric_history(there.info.run_id, "valid_loss")]
    assert valid == validated

    kept = [f for f in (tmp_path / "run").rglob("*") if f.is_file()]
    assert [f for f in kept if SECRET.encode() in f.read_bytes()] == []
    assert SECRET not in (tmp_path / "log").read_text()
    print(
        f"{len(trained)} training rows in W&B, {len(found)} in MLflow, {len(starts(store))} attempts"
    )
