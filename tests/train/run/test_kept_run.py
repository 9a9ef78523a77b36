"""A run that an earlier version began goes on as that version would have gone on."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint.catalog import newest
from raymat.config.run import RunConfig, build
from raymat.data.feed import LocalFeed
from raymat.distributed.world import World
from raymat.storage.store import Store
from raymat.train.loop import startup
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.loop.trainer import Outcome, run
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.optim.step_trial import step_trial
from raymat.train.run.open_run import open_run
from tests.support.paths import TESTS
from tests.support.small import build_small

VERSIONS = sorted(folder for folder in (TESTS / "kept").iterdir() if folder.is_dir())
OPTIONS: dict[str, Any] = {
    "synthetic": 20, "backbone": "mobilenetv2", "device": "cpu", "precision": "fp64", "resolution": 16,
    "crop": "8:16", "batch_size": 4, "checkpoint_interval": 3, "valid_interval": 4, "valid_examples": 3,
    "log_loss_interval": 1, "log_images_interval": 10**6, "epoch_examples": 10**6, "keep": 1, "steps": 16,
    "ema_decay": 0.9, "accumulate": 2, "clip_norm": 1.0, "weight_decay": 0.01, "schedule": "plateau",
    "plateau_patience": 16, "plateau_min_delta": 1.0, "warmup_examples": 20, "seed": 3, "name": "run",
}  # fmt: skip
"""What the kept runs were begun with; of their name and place nothing depends."""
FIRST_TRIAL = "f7c51ddbaabf72ec"
"""Of the machine that made the runs whose trial was not kept."""


def resume(config: RunConfig, store: Store) -> Outcome:
    prepared = open_run(config, store)
    assert prepared.resumed
    return run(
        prepared,
        Worker(World(), torch.device("cpu")),
        feed=LocalFeed(prepared.source.open(), prepared.order, prepared.geometry, World()),
        store=store,
        host=Host(),
    )


@pytest.fixture(params=VERSIONS, ids=lambda folder: folder.name)
def kept(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.param
    return folder


def test_a_run_begun_by_an_earlier_version_ends_as_that_version_would_have_ended_it(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(startup, "build", build_small)
    expected = json.loads((kept / "expected.json").read_text(encoding="utf-8"))
    shutil.copytree(kept / "run", tmp_path / "run")
    store = Store.open(str(tmp_path), "run")
    outcome = resume(build("base", OPTIONS | {"storage": str(tmp_path)}), store)
    assert (outcome.step, outcome.attempt, outcome.already_complete) == (16, 2, False)
    (restored,) = [e for e in read_events(store) if e["kind"] == "restore"]
    assert (restored["checkpoint"], restored["attempt"]) == ("step-000000009-a001", 2)

    rows = [[r["step"], r["kind"], r["loss"], r.get("digest")] for r in read_metrics(store)]
    assert [(r[0], r[1], r[3]) for r in rows] == [(r[0], r[1], r[3]) for r in expected["rows"]]
    found = newest(store, json.loads((kept / "run/run.json").read_text())["run_id"])
    assert found is not None
    tensors = found[1].tensors
    assert sorted(tensors) == sorted(expected["tensors"])
    for name, (_, total, size) in expected["tensors"].items():
        assert float(tensors[name].double().abs().sum()) == pytest.approx(size, rel=1e-9), name
        assert float(tensors[name].double().sum()) == pytest.approx(total, abs=1e-9 * size), name
    extra = {k: v for k, v in found[1].extra.items() if k in expected["extra"]}
    assert extra.keys() == expected["extra"].keys()
    if same_arithmetic(expected):
        assert [r[2] for r in rows] == [r[2] for r in expected["rows"]]
        digests = {name: digest_of(tensor) for name, tensor in tensors.items()}
        assert digests == {name: digest for name, (digest, *_) in expected["tensors"].items()}
        assert extra == expected["extra"]


def same_arithmetic(expected: dict[str, Any]) -> bool:
    """Whether this machine computes as the one that made the kept run: only then are the last bits the same.

    Processors of two makers with the same instructions do not.
    """
    here = torch.backends.cpu.get_cpu_capability(), torch.__version__, step_trial("fp64")
    return here == (expected["cpu"], expected["torch"], expected.get("step trial", FIRST_TRIAL))


def digest_of(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
