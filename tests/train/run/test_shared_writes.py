"""What a driver writes that has lost the lease changes nothing, wherever it slept."""

from __future__ import annotations

import copy
import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raymat.config.run import RunConfig
from raymat.errors import LeaseLostError, RaymatError
from raymat.storage.store import Store
from raymat.train.run.lease.entries import Pace
from raymat.train.run.lease.lease import Lease
from raymat.train.run.open_run import OpenedRun, open_run
from raymat.train.run.run_file import check_run_file, mend_run_file, read_run
from tests.support import runs
from tests.support.kit import tiny
from tests.support.s3 import S3Server

SLEEPS = Pace(renew=60.0, ttl=30.0, look=0.02, watch=0.02)
"""Of a driver that never renews."""
LIVES = Pace(renew=60.0, ttl=0.2, look=0.02, watch=0.02)
OPTIONS: dict[str, Any] = {"valid_examples": 0, "precision": "fp32"}


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store.open(str(tmp_path), "run")
    server: S3Server = request.getfixturevalue("s3_server")
    return server.store(f"bucket-{time.monotonic_ns()}")


class Sleepy:
    """A backend whose `sleeps_before`-th call, counted from the moment it is awake for, waits until it is woken."""

    def __init__(self, backend: Any, sleeps_before: int) -> None:
        self._backend, self._left = backend, sleeps_before
        self.asleep, self.woken = threading.Event(), threading.Event()
        self.call = ""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._backend, name)

        def slow(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self.call = f"{name} {arguments[0]}"
                self.asleep.set()
                assert self.woken.wait(30)
            return call(*arguments)

        return slow


def config(store: Store, **options: Any) -> RunConfig:
    return tiny("base", Path("/runs"), "run", **OPTIONS | options)


@contextmanager
def driving(store: Store, pace: Pace) -> Any:
    """Hold the lease as a driver, and let it go as one that was killed: nothing is released."""
    lease = Lease.acquire(store, pace=pace, say=lambda line: None)
    try:
        yield lease
    finally:
        lease._ended.set()


def with_a_sleeper(
    store: Store, number: int, sleeper: RunConfig, successor: RunConfig
) -> tuple[str, RaymatError | OpenedRun, OpenedRun]:
    """Let a driver sleep before its `number`-th call to storage while another takes over and opens the run.

    Returns the call, what became of the sleeper, and the successor's run.
    """
    slow = copy.copy(store)
    slow.backend = backend = Sleepy(store.backend, number)  # type: ignore[assignment]
    with (
        driving(store, SLEEPS) as lost,
        ThreadPoolExecutor(1) as pool,
    ):
        lost._renewal.store = slow

        def open_slowly() -> RaymatError | OpenedRun:
            try:
                return open_run(sleeper, slow, tenure=lost)
            except RaymatError as error:
                return error

        opening = pool.submit(open_slowly)
        while not backend.asleep.wait(0.01):
            if opening.done():
                break
        try:
            with driving(store, LIVES) as lease:
                run = open_run(successor, store, tenure=lease)
        finally:
            backend.woken.set()
        return backend.call, opening.result(), run


def require_only_the_successors(
    store: Store, call: str, slept: RaymatError | OpenedRun, run: OpenedRun
) -> None:
    """The run is what the successor made of it, and stays so."""
    described = read_run(store)
    assert described is not None
    assert (described["run_id"], described["config"]["steps"]) == (run.run_id, 16)
    if isinstance(slept, OpenedRun):  # all was written before the other came
        reads = call.startswith("read") and "/checkpoints/" in call  # is the run complete?
        assert not call or (call.startswith(("list", "delete")) and "/run/run" in call) or reads
    else:
        assert isinstance(slept, LeaseLostError)
    # The one write that no look at the lease can follow in time: it counts for nobody, and is mended.
    late = call.startswith("write") and call.endswith("run.json")
    assert (check_run_file(store) is None) is not late
    with driving(store, LIVES) as lease:
        mend_run_file(store, lease)
        assert check_run_file(store) is None
        assert json.loads(store.read("run.json"))["lease"] == described["lease"]
        again = open_run(run.config, store, tenure=lease)
    assert (again.run_id, again.changes) == (run.run_id, ())


@pytest.mark.parametrize("number", range(1, 13))
def test_a_driver_that_slept_while_it_made_the_run_leaves_its_successors_as_it_is(
    store: Store, number: int
) -> None:
    call, slept, run = with_a_sleeper(
        store, number, config(store, steps=12), config(store, steps=16)
    )
    require_only_the_successors(store, call, slept, run)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has ended, after 4 steps."""
    folder = tmp_path_factory.mktemp("ended")
    runs.without_ray(runs.tiny(folder, "run", steps=4, **OPTIONS))
    return folder


@pytest.mark.parametrize("number", range(1, 25))
def test_a_driver_that_slept_while_it_made_the_run_longer_leaves_its_successors_as_it_is(
    ended: Path, tmp_path: Path, number: int
) -> None:
    shutil.copytree(ended / "run", tmp_path / "run")
    store = Store.open(str(tmp_path), "run")
    longer = [runs.tiny(tmp_path, "run", steps=steps, **OPTIONS) for steps in (12, 16)]
    call, slept, run = with_a_sleeper(store, number, *longer)
    require_only_the_successors(store, call, slept, run)
    # Where both have ended it before, its end is recorded once.
    assert run.order.lineage.ends == (16,)
    assert run.order.total_steps == 16
