"""The workers' own look at their driver's lease, for when the driver sleeps. The rules are in docs/guarantees.md."""

from __future__ import annotations

import logging
import threading
import time

from raymat.errors import LeaseLostError, RunGoneError, StorageError
from raymat.storage.store import FileInfo, Store
from raymat.train.run.lease.entries import (
    PACE,
    Entry,
    Pace,
    impatient,
    list_entries,
    path_of,
    successors_of,
)

log = logging.getLogger(__name__)


class LeaseWatch:
    """Rank 0's thread that looks every few seconds whether its driver still has the lease."""

    def __init__(self, store: Store, name: str, pace: Pace = PACE) -> None:
        self._store, self._name, self._pace = store, name, pace
        self._impatient = impatient(store, pace)
        self._lost: LeaseLostError | RunGoneError | None = None
        self._gone_since: float | None = None
        """Since when the run's folder is gone (monotonic); None while it is there."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lease-watch", daemon=True)
        self._thread.start()

    def raise_if_lost(self) -> None:
        """Raise LeaseLostError if another driver was seen to have the run, RunGoneError if its folder has gone; returns at once."""
        if self._lost is not None:
            raise type(self._lost)(*self._lost.args)

    def require(self) -> None:
        """Ask the storage, and raise LeaseLostError if another driver has the run. Raises StorageError."""
        require_unsucceeded(self._store, self._name)

    def stop(self) -> None:
        """Stop looking."""
        self._ended.set()

    def _work(self) -> None:
        while self._lost is None and not self._ended.wait(self._pace.watch):
            try:
                require_holder(self._impatient, self._name)
                self._gone_since = None
            except RunGoneError as error:
                self._note_gone(error)
            except StorageError as error:
                log.info("cannot look at the lease: %s", error.line)
            except LeaseLostError as error:
                self._lost = error
            except Exception:  # without this thread nobody looks: it must outlive any fault
                log.exception("cannot look at the lease: unexpected error")

    def _note_gone(self, error: RunGoneError) -> None:
        """Give the folder the lease's time to live to come back: a mount may be lost for a moment."""
        now = time.monotonic()
        if self._gone_since is None:
            self._gone_since = now
        if now - self._gone_since > self._pace.ttl:
            self._lost = error


def require_holder(store: Store, name: str) -> None:
    """Raise if the driver that had the lease `name` no longer has it. Two requests.

    Raises:
        LeaseLostError: another has it, or nobody. RunGoneError: the run's folder is gone. StorageError: the storage cannot
            be read.
    """
    store.require_anchor()
    data = store.try_read(path_of(name))
    if data is None or Entry.decode(name, data).state != "holder":
        raise _loss(store, successors_of(store, name, list_entries(store)))


def require_unsucceeded(store: Store, name: str) -> None:
    """Raise unless the driver still has the lease `name`. One listing, which also shows a successor that may not delete.

    Asked after a write, a successor that is not seen yet will see what was written.

    Raises:
        LeaseLostError: another has it, or nobody. StorageError: the storage cannot be read.
    """
    refuse_successors(store, name, list_entries(store))


def refuse_successors(store: Store, name: str, listed: dict[str, FileInfo]) -> None:
    """Raise LeaseLostError if, by this listing, another became holder after `name`, or its object is gone."""
    successors = successors_of(store, name, listed)
    if successors or name not in listed:
        raise _loss(store, successors)


def _loss(store: Store, successors: list[Entry]) -> LeaseLostError:
    if not successors:
        store.require_anchor()  # an object that is gone with all the rest was taken by nobody
    who = f"{successors[-1].owner} drives it" if successors else "its object in storage is gone"
    return LeaseLostError(
        f"this driver has lost the lease on {store.url}: {who}; it stops, as do its workers"
    )
