"""How a driver gets a run's lease: what it writes and waits for. The rules are in docs/guarantees.md."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from raymat.errors import LeaseError, StorageError
from raymat.storage.store import Store
from raymat.train.run.lease.entries import (
    Entry,
    OwnEntry,
    Pace,
    Seen,
    boottime,
    name_after,
    remove_entries,
)
from raymat.train.run.lease.peers import Peers
from raymat.train.run.lease.process import Owner

log = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Called with one line for people when something takes long."""


@dataclass(frozen=True)
class Acquired:
    """A lease that was just acquired."""

    own: OwnEntry
    unreleased: bool
    """Whether the holder before did not release it: workers of its may still train."""
    heard: float | None
    """When that holder was last heard of, in Unix seconds by the storage's clock; None if unknown, or if it released."""


@dataclass(frozen=True)
class _LeaveRequest:
    """Whom this contender asked to leave, and when (monotonic)."""

    holder: str
    at: float


class LeaseAcquisition:
    """One driver's attempt to get the lease."""

    def __init__(
        self, store: Store, take_over: bool | None, pace: Pace, say: Say, owner: Owner
    ) -> None:
        self._store, self._take_over, self._pace, self._say = store, take_over, pace, say
        self._owner = owner
        self._own: OwnEntry | None = None
        self._peers = Peers(store, pace)
        self._request: _LeaveRequest | None = None
        self._said: set[str] = set()

    def run(self) -> Acquired:
        """Wait until this driver is the holder.

        Raises:
            LeaseError: another holds the lease, and was not asked to leave or does not. StorageError: storage fails.
        """
        while True:
            if self._own is not None:
                self._own.renew()  # before the listing: of two contenders one then sees the other
            others = self._peers.look(self._own.entry if self._own is not None else None)
            live = [seen for seen in others if self._peers.is_alive(seen)]
            candidates = [seen.entry for seen in live if seen.entry.state == "candidate"]
            if self._own is None and not candidates:
                self._apply(others)
                continue
            self._wait_for_holder(live)
            if self._own is not None and not live:
                if self._promote(self._own, others):
                    self._clear(others)
                    return _acquired(self._own, others)
                continue
            if self._own is not None and any(c.term < self._own.entry.term for c in candidates):
                self.withdraw()
            time.sleep(self._pace.look)

    def withdraw(self) -> None:
        """Remove the own object, if the storage lets us."""
        own, self._own = self._own, None
        if own is not None:
            try:
                remove_entries(self._store, [own.entry])
            except StorageError as error:
                log.warning("an object of the lease is left behind: %s", error.line)

    def _apply(self, others: list[Seen]) -> None:
        """Become a candidate, behind all others."""
        name = name_after(self._store, (seen.entry.name for seen in others))
        entry = Entry(name, "candidate", self._owner, time.time())
        self._own = OwnEntry(self._store, entry, self._pace.ttl)
        self._own.write()

    def _wait_for_holder(self, live: list[Seen]) -> None:
        """Raise LeaseError where a holder lives; or ask it to leave, or say that it is being watched."""
        for seen in live:
            holder = seen.entry
            if holder.state == "candidate":
                continue
            if self._may_ask(holder):
                self._ask_to_leave(holder)
            elif self._peers.has_renewed(holder):
                raise LeaseError(f"{self._store.url} is being trained by {self._remedy(holder)}")
            else:
                age = self._peers.seconds_since_renewal(seen)
                renewed = "" if age is None else f", renewed {age:.0f} s ago"
                self._say_once(
                    holder.name,
                    f"the run is held by {holder.owner}{renewed}; "
                    f"waiting up to {self._pace.ttl:.0f} s to see whether it still lives",
                )

    def _may_ask(self, holder: Entry) -> bool:
        """Whether to ask this one: the first that was asked, and none that may not understand."""
        asked = self._request is None or self._request.holder == holder.name
        return bool(self._take_over) and asked and holder.state == "holder"

    def _remedy(self, holder: Entry) -> str:
        if holder.state == "unreadable":
            return f"{holder.owner}: wait until it ends, or stop it"
        ways = "or stop it" if self._take_over is None else "stop it, or say --take-over"
        return f"{holder.owner}, since {_clock(holder.since)}: wait until it ends, {ways}"

    def _ask_to_leave(self, holder: Entry) -> None:
        if self._own is None:
            return
        if self._request is None:
            self._request = _LeaveRequest(holder.name, time.monotonic())
            self._own.write(replaces=holder.name)
            self._say_once(
                f"asked {holder.name}",
                f"asked {holder.owner} to leave the run; waiting for its last commit",
            )
        if self._own.entry.replaces is None:  # under another name than when it asked first
            self._own.write(replaces=holder.name)
        waited = time.monotonic() - self._request.at
        if waited > self._pace.patience:
            raise LeaseError(
                f"{holder.owner} was asked {waited:.0f} s ago to leave {self._store.url} and still holds it: "
                "stop it, and try again"
            )

    def _promote(self, own: OwnEntry, dead: list[Seen]) -> bool:
        """Become the holder after those that are `dead`. False: start over, under a new name."""
        before = own.proved
        # A successor's term must be above those that it succeeds.
        if all(seen.entry.term < own.entry.term for seen in dead):
            own.write(state="holder", since=time.time())
            if boottime() - before <= self._pace.ttl:  # else others may have taken us for dead
                return True
        self.withdraw()
        return False

    def _clear(self, dead: list[Seen]) -> None:
        """Remove the objects of those that were succeeded."""
        if dead:
            remove_entries(self._store, [seen.entry for seen in dead])

    def _say_once(self, key: str, line: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._say(line)


def _acquired(own: OwnEntry, dead: list[Seen]) -> Acquired:
    """Return what the new holder should know of those that are `dead`, of which one may have held the lease to its end."""
    unreleased = [seen for seen in dead if seen.entry.state in ("holder", "unreadable")]
    heard = max((seen.modified for seen in unreleased), default=0.0)
    return Acquired(own, bool(unreleased), heard or None)


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
