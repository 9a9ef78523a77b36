"""The lease where drivers may write but not delete: it passes on as it does elsewhere."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from raymat.errors import LeaseError, LeaseLostError
from raymat.storage.store import Store
from raymat.train.run.lease.entries import Pace, list_entries, read_entries
from raymat.train.run.lease.lease import Lease
from raymat.train.run.lease.lease_watch import require_holder
from raymat.train.run.lease.process import Owner

QUICK = Pace(renew=0.2, ttl=3.0, look=0.05, watch=0.2)
ELSEWHERE = Owner.me().__class__(**{**vars(Owner.me()), "machine": None})
"""This process, but as nobody can look up whether it lives."""


def opened(folder: Path) -> Store:
    """A store of an account that may not delete."""

    def refuse(paths: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    store = Store.open(str(folder), "run")
    store.backend.delete = refuse  # type: ignore[method-assign]
    return store


def acquired(folder: Path, owner: Owner | None = None) -> Lease:
    return Lease.acquire(opened(folder), pace=QUICK, owner=owner)


def states(folder: Path) -> list[str]:
    store = opened(folder)
    return sorted(seen.entry.state for seen in read_entries(store, list_entries(store)))


def test_a_driver_that_gave_up_is_no_successor_and_nobody_waits_for_it(tmp_path: Path) -> None:
    first = acquired(tmp_path)
    with pytest.raises(LeaseError, match="is being trained by"):
        acquired(tmp_path, ELSEWHERE)
    time.sleep(4 * QUICK.renew)
    assert first.lost is None
    first.release()
    began = time.monotonic()
    acquired(tmp_path).release()
    assert time.monotonic() - began < QUICK.ttl
    assert "candidate" not in states(tmp_path)


def test_workers_of_a_driver_that_died_find_out_that_it_was_succeeded(tmp_path: Path) -> None:
    first = acquired(tmp_path, ELSEWHERE)
    first._ended.set()  # it renews no more, and does not release
    first._thread.join()
    second = acquired(tmp_path)
    with pytest.raises(LeaseLostError):
        require_holder(opened(tmp_path), first.name)
    require_holder(opened(tmp_path), second.name)
    second.release()
    assert states(tmp_path) == ["released", "released"]


def test_a_holder_that_wakes_up_finds_out_that_it_was_succeeded(tmp_path: Path) -> None:
    first = acquired(tmp_path, ELSEWHERE)
    first._ended.set()
    first._thread.join()
    second = acquired(tmp_path)
    with pytest.raises(LeaseLostError):
        first._renewal.renew()
    time.sleep(4 * QUICK.renew)
    assert second.lost is None
    second.release()
