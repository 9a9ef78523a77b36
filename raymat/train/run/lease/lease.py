"""The lease: of all drivers of a run at most one has it, and only its workers train. Without locks, on any storage.

Object stores have no locks, and not all of them can write "only if there is none". So nobody ever writes what another
may write: each contender has one object of its own, `lease/TERM-WORD.json`, and all that is asked of storage is that a
listing shows what was written before it.

**One holder.** A contender writes its object as a candidate, then lists. It becomes the holder, by writing its object
again, only after a listing that showed no other live object, be it a holder's or a candidate's. Take two, A and B, that
both became holders: each wrote as a candidate first and listed afterwards. If A wrote before B did, B's listing came
after A's object was there, and showed it: B did not become holder. If B wrote first, A did not. So there are no two. Of
several candidates that see each other the smallest name waits, the others withdraw: one of them gets through.

**Live** is who renews its object, every 5 s, within 20 s; or whom nobody has watched for so long. Clocks of different
machines are never compared. A contender watches on its own clock whether the object changes: 20 s without a change, and
it is dead. Faster where that is certain: a process that no longer exists on this machine, or an object that by the
storage's own clock is 300 s older than the one that the contender has just written. A write that took longer than the
20 s proves nothing, as others may have watched it fail to come: a candidate starts over, a holder looks before it writes.

**A holder that was taken for dead and is not** (suspended, or cut off from the storage) cannot know it meanwhile, and
trains on: attempts never write the same objects, so nothing can be damaged. It finds out by two ways. Its driver sees at
its next renewal a holder with a larger name: a successor's term is always above those that it succeeds, and the last
one's object stays behind as `released` to count on from. And since a driver may sleep while its workers do not, rank 0
looks itself every 3 s (`LeaseWatch`) whether its driver's object is still there: a successor removes it, and trains 6 s
later at the earliest (`wait_until_alone`); also after a driver that certainly died, whose workers Ray ends only some seconds later.
Rank 0 then ends the attempt without a further commit (what is being uploaded at that instant may still arrive). This is
looked up beside training and not before each commit, because it must also end an attempt that is far from its next one. A
worker group that starts looks too.

**Taking over.** A contender may name in its own object the holder that it wants to replace. The holder sees that at
its next renewal, has its workers commit and leave, and releases. So nothing is lost, and never do both train.

A holder that cannot reach the storage for longer than 20 s says so in one line and trains on; when it can again it
looks first whether another has become holder. Requests: a holder makes 24 a minute (12 writes, 12 listings), rank 0
20 reads; on S3 about 0.01 dollars an hour. On a shared file system the listing after an own write is what is relied
upon, no lock of the file system's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType

from raymat.errors import LeaseLostError, StorageError
from raymat.storage.store import FileInfo, Store
from raymat.train.run.lease.acquire import LeaseAcquisition, Say
from raymat.train.run.lease.entries import (
    PACE,
    Entry,
    Pace,
    Seen,
    boottime,
    impatient,
    list_entries,
    path_of,
    read_entries,
    successors_of,
)
from raymat.train.run.lease.process import Owner
from raymat.train.run.notice import LeavingError, Notice

log = logging.getLogger(__name__)


class Lease:
    """What the driver of a run holds, from `acquire` until `release`: it is renewed by a thread.

    As a context manager it is released at the end; and an error that came of losing it is said as such:

    Raises:
        LeaseLostError: another driver has the run now, at its request or because this one was taken for dead.
    """

    def __init__(self, store: Store, entry: Entry, proved: float, pace: Pace, say: Say) -> None:
        self._store, self._entry, self._proved = store, entry, proved
        self._pace, self._say = pace, say
        self._told_late = False
        self._alone_at = 0.0
        self._asked: Notice | None = None
        self._lost: LeaseLostError | None = None
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
        take_over: bool = False,
        pace: Pace = PACE,
        say: Say = log.warning,
        owner: Owner | None = None,
    ) -> Lease:
        """Become the run's one driver. `take_over`: if there is a live one, ask it to leave and wait until it has.

        `say` is told, one line each, what takes long. Returns after at most the time to live, but for a holder's last
        commit that is waited for.

        Raises:
            LeaseError: another driver holds the run. StorageError: the storage cannot be read or written.
        """
        contender = LeaseAcquisition(store, take_over, pace, say, owner or Owner.me())
        try:
            entry, proved, left_behind = contender.contend()
        except BaseException:
            contender.withdraw()
            raise
        lease = cls(impatient(store, pace), entry, proved, pace, say)
        if left_behind:
            lease._alone_at = time.monotonic() + 2 * pace.watch
        return lease

    @property
    def name(self) -> str:
        """Names this holding of the lease, and no other ever: for `LeaseWatch` and `require`."""
        return self._entry.name

    @property
    def lost(self) -> LeaseLostError | None:
        """What happened, once another driver has become holder."""
        return self._lost

    def wait_until_alone(self) -> None:
        """Return when workers of a holder that did not release, if any still train, have found out that it was succeeded."""
        time.sleep(max(0.0, self._alone_at - time.monotonic()))

    @contextmanager
    def calling(self, on_leave: Callable[[Notice], None]) -> Iterator[None]:
        """Inside, `on_leave` is called from a thread, perhaps repeatedly, once the workers are to commit and leave."""
        with self._calling:
            self._on_leave = on_leave
        try:
            yield
        finally:
            with self._calling:
                self._on_leave = None

    def release(self) -> None:
        """Let others have the run; to be called when its workers have ended. A failing storage is only logged."""
        self._ended.set()
        self._thread.join()
        if self._lost is not None:
            return
        try:
            self._store.write(self._entry.path, replace(self._entry, state="released").encode())
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
        while not self._ended.wait(self._pace.renew):
            try:
                self._renew()
            except StorageError as error:
                self._warn_once(error)
            except LeaseLostError as error:
                self._lost = error
                # The workers find out by themselves, and must not commit. Where there are none the controller must hear.
                if not self._ended.wait(2 * self._pace.watch):
                    self._tell_now(Notice(error.line, final=True))
                return

    def _renew(self) -> None:
        began = boottime()
        if began - self._proved > self._pace.ttl:
            self._refuse_successor(list_entries(self._store))
        self._entry = replace(self._entry, renewals=self._entry.renewals + 1)
        self._store.write(self._entry.path, self._entry.encode())
        if boottime() - began <= self._pace.ttl:
            self._proved, self._told_late = began, False
        listed = list_entries(self._store)
        self._refuse_successor(listed)
        del listed[self.name]
        self._heed(read_entries(self._store, listed))

    def _refuse_successor(self, listed: dict[str, FileInfo]) -> None:
        """Raise LeaseLostError if another has become holder since."""
        successors = successors_of(self._store, self.name, listed)
        if successors or self.name not in listed:
            raise LeaseLostError(_loss(self._store, successors))

    def _heed(self, others: list[Seen]) -> None:
        """Do what a newcomer asks; and remove what a former holder wrote that did not know that it was succeeded."""
        zombies = [
            s.entry.path
            for s in others
            if s.entry.state == "holder" and s.entry.term < self._entry.term
        ]
        if zombies:
            self._store.delete(zombies)
        for seen in others:
            if seen.entry.replaces == self.name and self._asked is None:
                self._asked = Notice(f"{seen.entry.owner} takes the run over", final=True)
        if self._asked is not None:
            self._tell_now(self._asked)

    def _tell_now(self, notice: Notice) -> None:
        with self._calling:
            if self._on_leave is not None:
                self._on_leave(notice)

    def _warn_once(self, error: StorageError) -> None:
        silent = boottime() - self._proved
        if silent > self._pace.ttl and not self._told_late:
            self._told_late = True
            self._say(
                f"the lease on the run could not be renewed for {silent:.0f} s, another driver may take the run over; "
                f"training goes on: {error.line}"
            )


class LeaseWatch:
    """Rank 0's own look at its driver's lease, by a thread; for when the driver sleeps."""

    def __init__(self, store: Store, name: str, pace: Pace = PACE) -> None:
        self._store, self._name, self._pace = impatient(store, pace), name, pace
        self._lost: LeaseLostError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lease-watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LeaseLostError if another driver was seen to have the run; returns at once."""
        if self._lost is not None:
            raise LeaseLostError(*self._lost.args)

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def _work(self) -> None:
        while not self._ended.wait(self._pace.watch):
            try:
                require(self._store, self._name)
            except StorageError as error:
                log.info("cannot look at the lease: %s", error.line)
            except LeaseLostError as error:
                self._lost = error
                return


def require(store: Store, name: str) -> None:
    """Raise where the driver that had the lease `name` has it no more. One request.

    Raises:
        LeaseLostError: another has it, or nobody. StorageError: the storage cannot be read.
    """
    data = store.try_read(path_of(name))
    entry = None if data is None else Entry.try_decode(data)
    if entry is None or entry.state != "holder":
        raise LeaseLostError(_loss(store, successors_of(store, name, list_entries(store))))


def _loss(store: Store, successors: list[Entry]) -> str:
    who = f"{successors[-1].owner} drives it" if successors else "its object in storage is gone"
    return f"this driver has lost the lease on {store.url}: {who}; it stops, as do its workers"
