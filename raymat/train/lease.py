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
looks itself every 3 s (`Watch`) whether its driver's object is still there: a successor removes it, and trains 6 s
later at the earliest (`settle`); also after a driver that certainly died, whose workers Ray ends only some seconds later.
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

import copy
import json
import logging
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Literal

from raymat.checkpoint.store import FileInfo, RetryPolicy, Store
from raymat.errors import LeaseError, LeaseLostError, StorageError
from raymat.train.notice import LeavingError, Notice
from raymat.train.owner import Owner

log = logging.getLogger(__name__)

FOLDER = "lease"
_NAME = re.compile(rf"{FOLDER}/(?P<name>(?P<term>\d{{6,}})-[0-9a-f]{{8}})\.json")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often things are looked at, in seconds."""

    renew: float = 5.0
    """A holder renews its object so often."""
    ttl: float = 20.0
    """Who was watched for so long and did not renew is dead."""
    stale: float = 300.0
    """So much older by the storage's clock: dead at once. Storages whose machines' clocks differ by more do not work."""
    look: float = 1.0
    """A contender looks so often."""
    watch: float = 3.0
    """Rank 0 looks so often."""
    patience: float = 600.0
    """A holder that was asked to leave may take so long for its last commit."""


@dataclass(frozen=True)
class Entry:
    """A contender's object."""

    name: str
    state: Literal["candidate", "holder", "released"]
    owner: Owner
    since: float
    """Unix seconds, by its own clock, for people only."""
    renewals: int = 0
    replaces: str | None = None
    """The holder that it asks to leave."""

    @property
    def path(self) -> str:
        """Where it lies in the run's folder."""
        return path_of(self.name)

    @property
    def term(self) -> tuple[int, str]:
        """Orders all contenders of a run."""
        return term_of(self.name)

    def encode(self) -> bytes:
        """The object's bytes: other ones after each renewal."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def try_decode(cls, data: bytes) -> Entry | None:
        """None for what is no entry."""
        try:
            values = json.loads(data)
            return cls(**values | {"owner": Owner(**values["owner"])})
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Seen:
    """Another's object, at one look."""

    entry: Entry
    data: bytes
    modified: float
    """Unix seconds by the storage's clock; 0: it does not say."""


def path_of(name: str) -> str:
    """The path of a contender's object in the run's folder."""
    return f"{FOLDER}/{name}.json"


def term_of(name: str) -> tuple[int, str]:
    """What orders the names of contenders."""
    number, _, word = name.partition("-")
    return int(number), word


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
        self._settled = 0.0
        self._asked: Notice | None = None
        self._lost: LeaseLostError | None = None
        self._tell: Callable[[Notice], None] | None = None
        self._telling = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(
        cls,
        store: Store,
        *,
        take_over: bool = False,
        pace: Pace = Pace(),
        say: Say = log.warning,
        owner: Owner | None = None,
    ) -> Lease:
        """Become the run's one driver. `take_over`: if there is a live one, ask it to leave and wait until it has.

        `say` is told, one line each, what takes long. Returns after at most the time to live, but for a holder's last
        commit that is waited for.

        Raises:
            LeaseError: another driver holds the run. StorageError: the storage cannot be read or written.
        """
        contender = _Contender(store, take_over, pace, say, owner or Owner.me())
        try:
            entry, proved, left_behind = contender.contend()
        except BaseException:
            contender.withdraw()
            raise
        lease = cls(_impatient(store, pace), entry, proved, pace, say)
        if left_behind:
            lease._settled = time.monotonic() + 2 * pace.watch
        return lease

    @property
    def name(self) -> str:
        """Names this holding of the lease, and no other ever: for `Watch` and `require`."""
        return self._entry.name

    @property
    def lost(self) -> LeaseLostError | None:
        """What happened, once another driver has become holder."""
        return self._lost

    def settle(self) -> None:
        """Return when workers of a holder that did not release, if any still train, have found out that it was succeeded."""
        time.sleep(max(0.0, self._settled - time.monotonic()))

    @contextmanager
    def telling(self, tell: Callable[[Notice], None]) -> Iterator[None]:
        """Inside, `tell` is called from a thread, perhaps repeatedly, once the workers are to commit and leave."""
        with self._telling:
            self._tell = tell
        try:
            yield
        finally:
            with self._telling:
                self._tell = None

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
            self._refuse_successor(_list(self._store))
        self._entry = replace(self._entry, renewals=self._entry.renewals + 1)
        self._store.write(self._entry.path, self._entry.encode())
        if boottime() - began <= self._pace.ttl:
            self._proved, self._told_late = began, False
        listed = _list(self._store)
        self._refuse_successor(listed)
        del listed[self.name]
        self._heed(_read(self._store, listed))

    def _refuse_successor(self, listed: dict[str, FileInfo]) -> None:
        """Raise LeaseLostError if another has become holder since."""
        successors = _successors(self._store, self.name, listed)
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
        with self._telling:
            if self._tell is not None:
                self._tell(notice)

    def _warn_once(self, error: StorageError) -> None:
        silent = boottime() - self._proved
        if silent > self._pace.ttl and not self._told_late:
            self._told_late = True
            self._say(
                f"the lease on the run could not be renewed for {silent:.0f} s, another driver may take the run over; "
                f"training goes on: {error.line}"
            )


class Watch:
    """Rank 0's own look at its driver's lease, by a thread; for when the driver sleeps."""

    def __init__(self, store: Store, name: str, pace: Pace = Pace()) -> None:
        self._store, self._name, self._pace = _impatient(store, pace), name, pace
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
        raise LeaseLostError(_loss(store, _successors(store, name, _list(store))))


class _Contender:
    """A driver that wants the lease."""

    def __init__(self, store: Store, take_over: bool, pace: Pace, say: Say, owner: Owner) -> None:
        self._store, self._take_over, self._pace, self._say = store, take_over, pace, say
        self._owner = owner
        self._own: Entry | None = None
        self._proved = -math.inf
        """When the newest write of the own object began that did not last too long (boottime)."""
        self._looked = 0.0
        """When the newest look began (monotonic)."""
        self._storage_now = 0.0
        """What the storage's clock showed at the newest own write; 0: unknown."""
        self._target: str | None = None
        self._asked_at = 0.0
        self._said: set[str] = set()
        self._known: dict[str, tuple[bytes, float, bool]] = {}
        """By name: the bytes seen last, since when (monotonic), and whether they ever changed."""

    def contend(self) -> tuple[Entry, float, bool]:
        """The own entry as holder; when its newest write began; whether a holder was succeeded that had not released."""
        while True:
            others = self._look()
            live = [seen for seen in others if self._lives(seen)]
            candidates = [seen.entry for seen in live if seen.entry.state == "candidate"]
            if self._own is None and not candidates:
                self._apply(others)
                continue
            self._refuse(live)
            if self._own is not None and not live:
                if self._promote(others):
                    return self._own, self._proved, self._clear(others)
                continue
            if self._own is not None and any(c.term < self._own.term for c in candidates):
                self.withdraw()
            time.sleep(self._pace.look)

    def withdraw(self) -> None:
        """Take the own object away, if the storage lets us."""
        own, self._own = self._own, None
        if own is not None:
            try:
                self._store.delete([own.path])
            except StorageError as error:
                log.warning("an object of the lease is left behind: %s", error.line)

    def _look(self) -> list[Seen]:
        """All others, after having renewed the own object."""
        if self._own is not None:
            self._write(replace(self._own, renewals=self._own.renewals + 1))
        self._looked = time.monotonic()
        listed = _list(self._store)
        own = listed.pop(self._own.name, None) if self._own is not None else None
        self._storage_now = own.modified if own is not None else 0.0
        return _read(self._store, listed)

    def _lives(self, seen: Seen) -> bool:
        """Whether another's object must be reckoned with."""
        if seen.entry.state == "released" or seen.entry.owner.gone:
            return False
        if seen.modified and self._storage_now - seen.modified > self._pace.stale:
            return False
        data, since, changed = self._known.get(seen.entry.name, (None, 0.0, False))
        if data != seen.data:
            changed = data is not None
            self._known[seen.entry.name] = (seen.data, time.monotonic(), changed)
            return True
        # Of two readings that are equal the first was over `since`, and the second not begun when `_looked` was taken.
        return self._looked - since <= self._pace.ttl

    def _refuse(self, live: list[Seen]) -> None:
        """Raise LeaseError where a holder lives; ask it to leave, or say whom is waited for."""
        for seen in live:
            holder = seen.entry
            if holder.state != "holder":
                continue
            if self._take_over and self._target in (None, holder.name):
                self._ask(holder)
            elif self._known[holder.name][2]:
                raise LeaseError(
                    f"{self._store.url} is being trained by {holder.owner}, since {_clock(holder.since)}: "
                    "wait until it ends, stop it, or say --take-over"
                )
            else:
                ago = self._storage_now - seen.modified
                renewed = (
                    f", renewed {max(0.0, ago):.0f} s ago"
                    if self._storage_now and seen.modified
                    else ""
                )
                self._say_once(
                    f"the run is held by {holder.owner}{renewed}; "
                    f"waiting up to {self._pace.ttl:.0f} s to see whether it still lives"
                )

    def _ask(self, holder: Entry) -> None:
        if self._own is None:
            return
        if self._target is None:
            self._target, self._asked_at = holder.name, time.monotonic()
            self._write(replace(self._own, replaces=holder.name))
            self._say_once(f"asked {holder.owner} to leave the run; waiting for its last commit")
        if self._own.replaces is None:
            self._write(replace(self._own, replaces=holder.name))
        waited = time.monotonic() - self._asked_at
        if waited > self._pace.patience:
            raise LeaseError(
                f"{holder.owner} was asked {waited:.0f} s ago to leave {self._store.url} and still holds it: "
                "stop it, and try again"
            )

    def _apply(self, others: list[Seen]) -> None:
        highest = max((seen.entry.term[0] for seen in others), default=0)
        name = f"{highest + 1:06d}-{uuid.uuid4().hex[:8]}"
        self._write(Entry(name, "candidate", self._owner, time.time()))

    def _promote(self, dead: list[Seen]) -> bool:
        """Become the holder after those that are `dead`. False: start over, under a new name."""
        assert self._own is not None
        before, term = self._proved, self._own.term
        if all(seen.entry.term < term for seen in dead):  # as a successor's must be
            self._write(replace(self._own, state="holder", since=time.time()))
            if boottime() - before <= self._pace.ttl:  # else others may have taken us for dead
                return True
        self.withdraw()
        return False

    def _clear(self, dead: list[Seen]) -> bool:
        """Remove the objects of those that were succeeded; whether one of them held the lease to its end."""
        if dead:
            self._store.delete([seen.entry.path for seen in dead])
        return any(seen.entry.state == "holder" for seen in dead)

    def _write(self, entry: Entry) -> None:
        self._own = entry
        began = boottime()
        self._store.write(entry.path, entry.encode())
        if boottime() - began <= self._pace.ttl:
            self._proved = began

    def _say_once(self, line: str) -> None:
        kind = line.partition("renewed")[0]
        if kind not in self._said:
            self._said.add(kind)
            self._say(line)


def boottime() -> float:
    """Seconds, on a clock that goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _impatient(store: Store, pace: Pace) -> Store:
    """The same store, which gives up before a renewal is due again."""
    impatient = copy.copy(store)
    impatient.retry = RetryPolicy(total=pace.renew)
    return impatient


def _list(store: Store) -> dict[str, FileInfo]:
    """The objects of all contenders, by name."""
    found = ((_NAME.fullmatch(info.path), info) for info in store.list(FOLDER))
    return {match["name"]: info for match, info in found if match}


def _read(store: Store, listed: dict[str, FileInfo]) -> list[Seen]:
    """What lies in them; without those that were removed meanwhile, and what is no entry."""
    found = []
    for info in listed.values():
        data = store.try_read(info.path)
        entry = None if data is None else Entry.try_decode(data)
        if data is not None and entry is not None:
            found.append(Seen(entry, data, info.modified))
    return found


def _successors(store: Store, name: str, listed: dict[str, FileInfo]) -> list[Entry]:
    """Who became holder after `name`, or was it."""
    later = {other: info for other, info in listed.items() if term_of(other) > term_of(name)}
    return [seen.entry for seen in _read(store, later) if seen.entry.state != "candidate"]


def _loss(store: Store, successors: list[Entry]) -> str:
    who = f"{successors[-1].owner} drives it" if successors else "its object in storage is gone"
    return f"this driver has lost the lease on {store.url}: {who}; it stops, as do its workers"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
