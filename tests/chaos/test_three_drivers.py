"""Three drivers of one run that are suspended at any moment leave one history, that of an undisturbed run."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import Manifest
from raymat.cli.verify import verify
from raymat.config.run import RunConfig
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.run.run_file import check_run_file, read_run
from tests.support import runs
from tests.support.s3 import S3Server
from tests.support.suspended_drivers import Chaos, Driver, Plan

OPTIONS: dict[str, Any] = {
    "steps": 24,
    "valid_interval": 6,
    "best_metric": "loss",
    "keep": 2,
    "log_images_interval": 8,
    "precision": "fp32",
}


def _rows(store: Store) -> list[tuple[Any, ...]]:
    return [(r["kind"], r["step"], r["loss"], r["digest"]) for r in read_metrics(store)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("undisturbed")
    config = runs.tiny(folder, "run", **OPTIONS)
    driver = Driver(Plan(config, {}), folder / "log")
    driver.process.join(120)
    assert driver.result() == "complete", (folder / "log").read_text()
    return runs.store_of(config)


def disturb(config: RunConfig, environment: dict[str, str], folder: Path, seed: int) -> Chaos:
    chaos = Chaos(
        lambda naps, take_over: Plan(config, environment, naps, take_over),
        folder / "log",
        random.Random(seed),
    )
    chaos.run(seconds=240)
    return chaos


def require_one_history(store: Store, undisturbed: Store) -> None:
    described = read_run(store)
    assert described is not None
    assert check_run_file(store) is None
    manifests = [f.path for f in store.list("checkpoints") if "/manifest-" in f.path]
    assert {Manifest.from_json(store.read(p)).run for p in manifests} == {described["run_id"]}
    attempts = Counter(e["attempt"] for e in read_events(store) if e["kind"] == "start")
    assert set(attempts.values()) == {1}
    assert _rows(store) == _rows(undisturbed)
    mine, yours = newest(store, described["run_id"]), newest(undisturbed)
    assert mine is not None
    assert yours is not None
    assert mine[0].step == yours[0].step == 24
    assert runs.differences(mine[1], yours[1]) == []
    kept = {s.id.step for s in scan(store) if s.state == "committed"}
    assert kept >= {s.id.step for s in scan(undisturbed)}


def schedule(seed: int, undisturbed: Store, tmp_path: Path, s3_server: S3Server | None) -> None:
    if s3_server is None:
        store, environment, storage = Store.open(str(tmp_path), "run"), {}, str(tmp_path)
    else:
        store = s3_server.store(f"bucket-three-{seed}")
        environment, storage = s3_server.environment, store.url.rpartition("/")[0]
    config = runs.tiny(storage, "run", **OPTIONS)
    chaos = disturb(config, environment, tmp_path, seed)
    require_one_history(store, undisturbed)
    print(f"schedule {seed}: {chaos.suspensions} suspensions, {dict(Counter(chaos.results))}")
    if s3_server is None:
        assert verify(store.url).code == 0


def test_in_a_folder(undisturbed: Store, tmp_path: Path) -> None:
    schedule(100, undisturbed, tmp_path, None)


def test_in_a_bucket(undisturbed: Store, tmp_path: Path, s3_server: S3Server) -> None:
    schedule(101, undisturbed, tmp_path, s3_server)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(20))
def test_as_drawn(seed: int, undisturbed: Store, tmp_path: Path, s3_server: S3Server) -> None:
    schedule(seed, undisturbed, tmp_path, s3_server if seed % 2 else None)
