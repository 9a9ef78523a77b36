"""Whether a driver has a run's lease, seen from outside: by somebody who writes nothing and contends for nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymat.storage.store import Store
from raymat.train.run.lease.entries import PACE, Pace, Seen
from raymat.train.run.lease.peers import Peers
from raymat.train.run.lease.process import Owner

_CERTAIN = 3
"""Times to live for which an object must be older than another one of the same storage: then nobody need watch it."""


@dataclass(frozen=True)
class LeaseView:
    """What is known of a run's lease."""

    state: Literal["held", "lapsed", "free", "unclear"]
    """held: by a driver that renews it. lapsed: its holder is dead or cut off. free: nobody has it. unclear: it must be
    watched for longer."""
    owner: str = ""
    """The driver, for people; empty if nobody has it."""
    heard: float | None = None
    """When its object was last written, in Unix seconds by the storage's clock; None if unknown."""


class LeaseObserver:
    """Watches a run's lease: a holder is alive if its object changes, and dead if it does not for the time to live.

    No clock of the holder's machine is compared with this one's.
    """

    def __init__(self, store: Store, pace: Pace = PACE) -> None:
        self._peers, self._pace = Peers(store, pace), pace

    def look(self, storage_now: float = 0.0) -> LeaseView:
        """Look once: a listing, and a read for each contender, of which there is seldom more than one.

        Args:
            storage_now: a time that the storage's clock has certainly passed (Unix seconds), as that of its newest object.
                A holder's object that is much older is lapsed at once.

        Raises:
            StorageError: the storage cannot be read.
        """
        seen = [s for s in self._peers.look(None) if s.entry.state not in ("released", "withdrawn")]
        if not seen:
            return LeaseView("free")
        newest = max(seen, key=lambda s: (s.modified, s.entry.term))
        oldest_alive = storage_now - _CERTAIN * self._pace.ttl
        alive = [
            s
            for s in seen
            if self._peers.is_alive(s) and not (s.modified and s.modified < oldest_alive)
        ]
        renewed = [s for s in alive if self._peers.has_renewed(s.entry)]
        if renewed:
            return _view("held", renewed[-1])
        return _view("unclear" if alive else "lapsed", newest)


def _view(state: Literal["held", "lapsed", "unclear"], seen: Seen) -> LeaseView:
    owner = seen.entry.owner
    words = (
        f"{owner.user}'s process {owner.pid} on {owner.host}" if isinstance(owner, Owner) else owner
    )
    return LeaseView(state, words, seen.modified or None)
