"""A run's folder that goes while the run is driven ends driver and workers with that reason, unless it soon comes back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raymat.errors import LeaseLostError, RunGoneError
from raymat.storage.store import Store
from raymat.train.run.lease.entries import Pace
from raymat.train.run.lease.lease import Lease
from raymat.train.run.lease.lease_watch import LeaseWatch, require_holder
from raymat.train.run.notice import LeavingError, Notice

QUICK = Pace(renew=0.05, ttl=1.0, look=0.02, watch=0.05)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "runs"), "run")


def _make_run(store: Store) -> None:
    store.write("run.json", b'{"run_id": "3f2a"}')
    store.anchor("3f2a", "run.json")


def _wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _raised(watch: LeaseWatch) -> BaseException | None:
    try:
        watch.raise_if_lost()
    except (LeaseLostError, RunGoneError) as error:
        return error
    return None


def test_driver_and_workers_end_with_the_reason_and_nothing_is_written(
    store: Store, tmp_path: Path
) -> None:
    notices: list[Notice] = []
    with pytest.raises(RunGoneError), Lease.acquire(store, pace=QUICK) as lease:
        _make_run(store)
        watch = LeaseWatch(store, lease.name, QUICK)
        with lease.calling(notices.append):
            shutil.move(tmp_path / "runs/run", tmp_path / "moved")
            _wait_for(lambda: lease.lost and _raised(watch) and notices)
        watch.stop()
        assert isinstance(lease.lost, RunGoneError)
        assert isinstance(_raised(watch), RunGoneError)
        assert (notices[0].reason, notices[0].final) == (lease.lost.line, True)
        with pytest.raises(RunGoneError):
            require_holder(store, lease.name)
        raise LeavingError(notices[0].reason, final=True)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_is_back_in_time_is_no_matter(store: Store, tmp_path: Path) -> None:
    with Lease.acquire(store, pace=QUICK) as lease:
        _make_run(store)
        watch = LeaseWatch(store, lease.name, QUICK)
        for _ in range(3):
            shutil.move(tmp_path / "runs/run", tmp_path / "moved")
            time.sleep(0.4)
            shutil.move(tmp_path / "moved", tmp_path / "runs/run")
            time.sleep(0.8)
        assert _raised(watch) is None
        assert lease.lost is None
        watch.stop()


def test_a_lost_object_of_a_run_that_is_there_is_a_lost_lease(store: Store, tmp_path: Path) -> None:
    with pytest.raises(LeaseLostError), Lease.acquire(store, pace=QUICK) as lease:
        _make_run(store)
        watch = LeaseWatch(store, lease.name, QUICK)
        lease._ended.set()  # it renews no more, as if its machine had gone to sleep
        time.sleep(0.2)
        shutil.rmtree(tmp_path / "runs/run/lease")
        _wait_for(lambda: _raised(watch))
        watch.stop()
        assert isinstance(_raised(watch), LeaseLostError)
        require_holder(store, lease.name)
