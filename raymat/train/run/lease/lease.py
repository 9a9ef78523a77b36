"""The lease: at most one of a run's drivers has it, and only that one's workers train.

Without locks, on any storage: each contender writes one object of its own, lists the others', and becomes the holder only
where a listing shows no other that is alive. docs/guarantees.md has the rules and the proof that there are never two
holders.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from raymat.errors import LeaseLostError, RunGoneError, StorageError
from raymat.storage.store import Store
from raymat.train.run.lease.acquire import LeaseAcquisition, Say
from raymat.train.run.lease.entries import (
    PACE,
    OwnEntry,
    Pace,
    Seen,
    impatient,
    list_entries,
    read_entries,
    remove_entries,
)
from raymat.train.run.lease.lease_watch import refuse_successors, require_unsucceeded
from raymat.train.run.lease.process import Owner
from raymat.train.run.notice import LeavingError, Notice

log = logging.getLogger(__name__)

T = TypeVar("T")


class Renewal:
    """Renews a holder's object, and finds out what others want."""

    def __init__(self, store: Store, own: OwnEntry, ttl: float, say: Say) -> None:
        """`store`: the run's, more patient than that of `own`, whose writes must not delay the next renewal."""
        self.store, self.own = store, own
        self._ttl, self._say = ttl, say
        self._warned = False

    def renew(self) -> Notice | None:
        """Renew the object; return a newcomer's request that the workers leave, if there is one.

        Raises:
            LeaseLostError: another has become holder. RunGoneError: the run's folder is gone. StorageError: the storage
                fails.
        """
        store, name = self.own.store, self.own.entry.name
        # After a silence others may have taken us for dead: look before the write, which would bring a removed object back.
        if self.own.silence() > self._ttl:
            refuse_successors(store, name, list_entries(store))
        self.own.renew()
        self._warned = self._warned and self.own.silence() > self._ttl
        listed = list_entries(store)
        refuse_successors(store, name, listed)
        del listed[name]
        others = read_entries(store, listed)
        self._remove_former_holders(others)
        asking = [seen.entry.owner for seen in others if seen.entry.replaces == name]
        return Notice(f"{asking[0]} takes the run over", final=True) if asking else None

    def is_late(self) -> bool:
        """Return whether the newest proof of life is older than the time to live."""
        return self.own.silence() > self._ttl

    def warn(self, error: str) -> None:
        """Say once that the lease could not be renewed for too long."""
        silent = self.own.silence()
        if silent > self._ttl and not self._warned:
            self._warned = True
            line = (
                f"the lease on the run could not be renewed for {silent:.0f} s, another driver may take the run over; "
                f"training goes on: {error}"
            )
            _call_safely(self._say, line)

    def _remove_former_holders(self, others: list[Seen]) -> None:
        """Remove what former holders wrote that did not know that they were succeeded."""
        zombies = [
            seen.entry
            for seen in others
            if seen.entry.state == "holder" and seen.entry.term < self.own.entry.term
        ]
        if zombies:
            remove_entries(self.own.store, zombies)


class Lease:
    """What the driver of a run holds, from `acquire` until `release`: it is renewed by a thread.

    As a context manager it is released at the end; and an error that came of losing it is said as such:

    Raises:
        LeaseLostError: another driver has the run now, at its request or because this one was taken for dead.
        RunGoneError: the run's folder is gone for longer than the time to live.
    """

    def __init__(
        self, renewal: Renewal, pace: Pace, alone_at: float, heard: float | None = None
    ) -> None:
        """`alone_at`: when no worker of another driver trains any more (monotonic). `heard`: as in `Acquired`."""
        self._renewal, self._pace, self._alone_at = renewal, pace, alone_at
        self.heard = heard
        """When a holder before that did not release the run was last heard of (Unix seconds); None: unknown, or none."""
        self._asked: Notice | None = None
        self._lost: LeaseLostError | RunGoneError | None = None
        self._on_leave: Callable[[Notice], None] | None = None
        self._calling = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        store: Store,
        *,
        take_over: bool | None = False,
        pace: Pace = PACE,
        say: Say = log.warning,
        owner: Owner | None = None,
    ) -> Lease:
        """Become the run's one driver. `take_over`: if there is a live one, ask it to leave and wait until it has; None: not
        possible here, so that nobody is advised to.

        `say` is called, with one line each, for what takes long. Returns after at most the time to live, but for a
        holder's last commit that is waited for.

        Raises:
            LeaseError: another driver holds the run. StorageError: the storage cannot be read or written.
        """
        acquisition = LeaseAcquisition(store, take_over, pace, say, owner or Owner.me())
        try:
            acquired = acquisition.run()
        except BaseException:
            acquisition.withdraw()
            raise
        alone_at = time.monotonic() + 2 * pace.watch if acquired.unreleased else 0.0
        own = OwnEntry(
            impatient(store, pace), acquired.own.entry, pace.ttl, proved=acquired.own.proved
        )
        return cls(Renewal(store, own, pace.ttl, say), pace, alone_at, acquired.heard)

    @property
    def name(self) -> str:
        """Names this holding of the lease, and no other ever: for `LeaseWatch` and `require_holder`."""
        return self._renewal.own.entry.name

    @property
    def lost(self) -> LeaseLostError | RunGoneError | None:
        """What happened, once another driver has become holder or the run's folder has gone."""
        return self._lost

    def require(self) -> None:
        """Ask the storage, and raise LeaseLostError if another driver has the run. Raises StorageError."""
        if self._lost is not None:
            raise self._lost
        require_unsucceeded(self._renewal.store, self.name)

    def wait_until_alone(self) -> None:
        """Wait until workers of a holder that did not release, if any still train, have found out that it was succeeded."""
        time.sleep(max(0.0, self._alone_at - time.monotonic()))

    @contextmanager
    def calling(self, on_leave: Callable[[Notice], None]) -> Iterator[None]:
        """Inside, `on_leave` is called from a thread, perhaps repeatedly, once the workers are to commit and leave."""
        with self._calling:
            self._on_leave = on_leave
        try:
            yield
        finally:
            with self._calling:  # a call that has begun ends first
                self._on_leave = None

    def release(self) -> None:
        """Let others have the run; call it when its workers have ended. A failing storage is only logged."""
        self._ended.set()
        self._thread.join()
        if self._lost is not None:
            return
        try:
            self._renewal.own.write(state="released")
        except StorageError as error:
            log.warning("the lease was not released, and will run out: %s", error.line)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        if isinstance(error, LeavingError) and self._asked is not None:
            raise LeaseLostError(error.line) from error
        if isinstance(error, Exception) and self._lost is not None:
            raise self._lost from error

    def _work(self) -> None:
        while self._lost is None and not self._ended.wait(self._pace.renew):
            self._renew()
            if self._lost is None and self._asked is not None:
                self._call(self._asked)
        # The workers find out by themselves, and must not commit. Where there are none the controller must hear.
        while self._lost is not None and not self._ended.wait(2 * self._pace.watch):
            self._call(Notice(self._lost.line, final=True))

    def _renew(self) -> None:
        try:
            asked = self._renewal.renew()
            self._asked = self._asked or asked
        except RunGoneError as error:
            self._lost = error if self._renewal.is_late() else None
        except StorageError as error:
            self._renewal.warn(error.line)
        except LeaseLostError as error:
            self._lost = error
        except Exception as error:  # without this thread nobody renews: it must outlive any fault
            log.exception("the lease could not be renewed: unexpected error")
            self._renewal.warn(f"{type(error).__name__}: {error}")

    def _call(self, notice: Notice) -> None:
        with self._calling:
            if self._on_leave is not None:
                _call_safely(self._on_leave, notice)


def _call_safely(call: Callable[[T], None], what: T) -> None:
    """Call what may fail and must not end the thread that renews."""
    try:
        call(what)
    except Exception:
        log.exception("cannot pass this on: %s", what)
