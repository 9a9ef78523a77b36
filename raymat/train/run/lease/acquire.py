"""A driver that wants a run's lease: what it writes and waits for until it has it. The rules are in `lease.py`."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from raymat.errors import LeaseError, StorageError
from raymat.storage.store import Store
from raymat.train.run.lease.entries import Entry, Pace, Seen, boottime, list_entries, read_entries
from raymat.train.run.lease.process import Owner

log = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Is told, one line each, what takes long."""


class LeaseAcquisition:
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
        listed = list_entries(self._store)
        own = listed.pop(self._own.name, None) if self._own is not None else None
        self._storage_now = own.modified if own is not None else 0.0
        return read_entries(self._store, listed)

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


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
