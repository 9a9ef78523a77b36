"""The other contenders for a run's lease, as one of them sees them. The rules are in docs/guarantees.md."""

from __future__ import annotations

import time
from dataclasses import dataclass

from raymat.storage.store import Store
from raymat.train.run.lease.entries import Entry, Pace, Seen, list_entries, read_entries
from raymat.train.run.lease.process import Owner


@dataclass(frozen=True)
class _Watched:
    """An object as it was last read, since when it is the same (monotonic), and whether it ever changed."""

    seen: Seen
    since: float
    changed: bool


class Peers:
    """Finds out which other contenders are alive, by whether their objects change while this one watches."""

    def __init__(self, store: Store, pace: Pace) -> None:
        self._store, self._pace = store, pace
        self._looked = 0.0
        """When the newest look began (monotonic)."""
        self._storage_now = 0.0
        """What the storage's clock showed at the newest write of the own object; 0 if unknown."""
        self._watched: dict[str, _Watched] = {}

    def look(self, own: Entry | None) -> list[Seen]:
        """Read the objects of all others; `own` must just have been written."""
        # Before the listing: an object that it shows unchanged was not renewed up to this time.
        self._looked = time.monotonic()
        listed = list_entries(self._store)
        mine = listed.pop(own.name, None) if own is not None else None
        self._storage_now = mine.modified if mine is not None else 0.0
        return read_entries(self._store, listed)

    def is_alive(self, seen: Seen) -> bool:
        """Return whether another's object, just read, must be reckoned with."""
        if seen.entry.state in ("released", "withdrawn"):
            return False
        if isinstance(seen.entry.owner, Owner) and seen.entry.owner.gone:
            return False
        before = self._watched.get(seen.entry.name)
        if before is None or before.seen != seen:
            now = time.monotonic()
            self._watched[seen.entry.name] = _Watched(seen, now, before is not None)
            return True
        # Of two readings that are equal the first was over `since`, and the second not begun when `_looked` was taken.
        return self._looked - before.since <= self._pace.ttl

    def has_renewed(self, entry: Entry) -> bool:
        """Return whether an object that is alive changed while it was watched."""
        return self._watched[entry.name].changed

    def seconds_since_renewal(self, seen: Seen) -> float | None:
        """Return how old another's object is by the storage's clock; None where it does not say."""
        if not (self._storage_now and seen.modified):
            return None
        return max(0.0, self._storage_now - seen.modified)
