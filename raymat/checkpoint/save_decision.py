"""Save decisions: what all ranks do with a save that is due, as pure functions of how busy their writers are.

Ranks write at different speeds, and a checkpoint that only some of them write is never committed. So no rank decides
by what it alone can see: the ranks first agree on a `Load`, then all of them make the same decision.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

from raymat.checkpoint.manifest import CheckpointId

MAX_ALIVE = 2
"""Snapshots in memory: one that is being written, one that waits."""


class Decision(enum.Enum):
    """Action for a save that is due."""

    BEGIN = "begin"
    """Take a snapshot: there is room."""
    JOIN = "join"
    """Take a snapshot in place of the one that waits and that no rank has begun to write."""
    SKIP = "skip"
    """Do without; the next save will come."""
    WAIT = "wait"
    """Stop training until there is room, then take a snapshot."""


@dataclass(frozen=True)
class Load:
    """How busy one rank's writer is or, once agreed upon, the busiest of all ranks."""

    alive: int = 0
    """Snapshots in memory, 0 to MAX_ALIVE."""
    waiting: bool = True
    """Whether the newest of them is not yet begun."""
    durable: frozenset[CheckpointId] = frozenset()
    """Checkpoints written but not yet confirmed; once agreed upon, those that all ranks have written."""
    age: float = 0.0
    """Seconds since a save was due that is newer than the newest commit; 0 if there is none."""

    @classmethod
    def agree(cls, loads: Iterable[Load]) -> Load:
        """Combine every rank's own load, given in any order, into the one that every rank decides by."""
        return reduce(
            lambda a, b: cls(
                max(a.alive, b.alive),
                a.waiting and b.waiting,
                a.durable & b.durable,
                max(a.age, b.age),
            ),
            loads,
        )


def decide(load: Load, *, urgent: bool = False) -> Decision:
    """Decide what to do with a save that is due under an agreed `load`.

    `urgent`: it must not be skipped (the last one, or before a node goes). Between agreement and action a rank can
    only become less busy: BEGIN always finds room, and where JOIN finds that the waiting snapshot was begun, there is
    room too.
    """
    if load.alive < MAX_ALIVE:
        return Decision.BEGIN
    if load.waiting:
        return Decision.JOIN
    return Decision.WAIT if urgent else Decision.SKIP
