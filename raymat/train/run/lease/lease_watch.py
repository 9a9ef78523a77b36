"""The workers' own look at their driver's lease, for when the driver sleeps. The rules are in docs/guarantees.md."""

from __future__ import annotations

import logging
import threading

from raymat.errors import LeaseLostError, StorageError
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
        self._store, self._name, self._pace = impatient(store, pace), name, pace
        self._lost: LeaseLostError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lease-watch", daemon=True)
        self._thread.start()

    def raise_if_lost(self) -> None:
        """Raise LeaseLostError if another driver was seen to have the run; returns at once."""
        if self._lost is not None:
            raise LeaseLostError(*self._lost.args)

    def stop(self) -> None:
        """Stop looking."""
        self._ended.set()

    def _work(self) -> None:
        while not self._ended.wait(self._pace.watch):
            try:
                require_holder(self._store, self._name)
            except StorageError as error:
                log.info("cannot look at the lease: %s", error.line)
            except LeaseLostError as error:
                self._lost = error
                return
            except Exception:  # without this thread nobody looks: it must outlive any fault
                log.exception("cannot look at the lease: unexpected error")


def require_holder(store: Store, name: str) -> None:
    """Raise if the driver that had the lease `name` no longer has it. One request.

    Raises:
        LeaseLostError: another has it, or nobody. StorageError: the storage cannot be read.
    """
    data = store.try_read(path_of(name))
    if data is None or Entry.decode(name, data).state != "holder":
        raise _loss(store, successors_of(store, name, list_entries(store)))


def refuse_successors(store: Store, name: str, listed: dict[str, FileInfo]) -> None:
    """Raise LeaseLostError if, by this listing, another became holder after `name`, or its object is gone."""
    successors = successors_of(store, name, listed)
    if successors or name not in listed:
        raise _loss(store, successors)


def _loss(store: Store, successors: list[Entry]) -> LeaseLostError:
    who = f"{successors[-1].owner} drives it" if successors else "its object in storage is gone"
    return LeaseLostError(
        f"this driver has lost the lease on {store.url}: {who}; it stops, as do its workers"
    )
