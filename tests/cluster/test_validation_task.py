"""Validation as a Ray task of its own: where it may run, and that nothing that becomes of it touches training."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from raymat.cli import diff
from raymat.cluster.driver.launch import fit
from raymat.cluster.worker.ray_validator import place_for
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import read_metrics
from tests.support.kit import rows, starts, tiny, wait_for


def claim(
    validation: str, has: dict[str, float], worker: dict[str, float], **options: Any
) -> dict[str, float] | None:
    config = tiny("base", "/nowhere", "run", validation=validation, **options)
    found = place_for(config, worker, has).claim
    return None if found is None else dict(found)


def test_auto_needs_a_core_that_neither_workers_nor_read_tasks_need() -> None:
    core = {"CPU": 1.0}
    assert claim("auto", {"CPU": 3.0}, core) == {"CPU": 1.0}
    assert claim("auto", {"CPU": 2.0}, core) is None
    assert claim("auto", {"CPU": 4.0}, {"CPU": 0.5}, workers="1:4") == {"CPU": 1.0}
    assert claim("auto", {"CPU": 4.0}, core, workers="1:3") is None
    assert claim("auto", {"CPU": 4.0}, core, decode_tasks=3) is None


def test_beside_shares_cores_where_none_is_free() -> None:
    assert claim("beside", {"CPU": 2.0}, {"CPU": 1.0}) == {}
    assert claim("beside", {"CPU": 3.0}, {"CPU": 1.0}) == {"CPU": 1.0}


def test_with_gpus_only_a_gpu_that_no_worker_will_take_will_do() -> None:
    each = {"CPU": 1.0, "GPU": 1.0}
    for validation in ("auto", "beside"):
        for has, found in ((3.0, {"GPU": 1.0}), (2.0, None)):
            cluster = {"CPU": 64.0, "GPU": has}
            assert claim(validation, cluster, each, device="cuda", workers="1:2") == found


class ValidationKiller(threading.Thread):
    """Kills the first process that validates step `step` beside training, by the number that the run's events name."""

    def __init__(self, store: Store, step: int) -> None:
        super().__init__(daemon=True)
        self._store, self._step = store, step
        self.killed: int | None = None

    def run(self) -> None:
        event = wait_for(self._store, "validation_runs", lambda e: e["step"] == self._step)
        found = re.match(r"process (\d+) ", event["who"])
        assert found is not None
        os.kill(int(found[1]), signal.SIGKILL)
        self.killed = int(found[1])


class WorkerKiller(ValidationKiller):
    """Kills a worker as soon as step `step` is validated beside it."""

    def run(self) -> None:
        wait_for(self._store, "validation_runs", lambda e: e["step"] == self._step)
        (start,) = starts(self._store)
        os.kill(start["ranks"][1]["pid"], signal.SIGKILL)


def of_kind(store: Store, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(store) if event["kind"] == kind]


def numbers(store: Store) -> list[tuple[int, Any, Any]]:
    found = [row for row in read_metrics(store) if row["kind"] == "valid"]
    return [(row["step"], row["loss"], row["metrics"]) for row in found]


LONG = {"valid_examples": 40, "valid_interval": 8}


@pytest.mark.chaos
def test_a_validation_whose_process_is_killed_is_begun_again_and_training_goes_on(
    cluster: None, tmp_path: Path
) -> None:
    config = tiny("base", tmp_path, "killed", validation="auto", steps=16, **LONG)
    store = Store.open(config.storage, config.name)
    killer = ValidationKiller(store, 8)
    killer.start()
    fit(config)
    killer.join()
    assert killer.killed
    assert len(starts(store)) == 1
    (died,) = of_kind(store, "validation_died")
    assert died["step"] == 8
    assert "WorkerCrashedError" in died["error"]
    assert [(e["step"], e["tries"]) for e in of_kind(store, "validation_begun")] == [(8, 1), (8, 2)]
    places = {e["step"]: e["place"] for e in of_kind(store, "validation")}
    assert places == {0: "loop", 8: "beside", 16: "loop"}
    assert [row[0] for row in rows(store)] == list(range(1, 17))


@pytest.mark.chaos
def test_a_worker_killed_while_a_validation_is_pending_changes_no_bit_and_does_not_end_it(
    cluster: None, tmp_path: Path
) -> None:
    stores = []
    for name in ("whole", "broken"):
        config = tiny("base", tmp_path, name, validation="auto", steps=20, workers="2", **LONG)
        stores.append(Store.open(config.storage, config.name))
        if name == "broken":
            WorkerKiller(stores[1], 8).start()
        fit(config)
    whole, broken = stores
    assert [start["attempt"] for start in starts(broken)] == [1, 2]
    assert diff.main([whole.url, broken.url]) == 0
    assert numbers(broken) == numbers(whole)
    assert rows(broken) == rows(whole)
    assert [step for step, _, _ in numbers(broken)] == [0, 8, 16, 20]
    # The workers that come after find the same process at it, or its result.
    assert len({e["who"] for e in of_kind(broken, "validation_runs") if e["step"] == 8}) == 1


@pytest.mark.chaos
def test_where_nothing_is_free_the_workers_validate(cluster: None, tmp_path: Path) -> None:
    options = {"validation": "auto", "steps": 16, "decode_tasks": 3, **LONG}
    config = tiny("base", tmp_path, "full", **options)
    fit(config)
    store = Store.open(config.storage, config.name)
    assert {e["step"]: e["place"] for e in of_kind(store, "validation")} == {
        0: "loop",
        8: "loop",
        16: "loop",
    }
    (told,) = of_kind(store, "validation_in_loop")
    assert (told["step"], told["reason"]) == (8, "no core is free")
