"""Bookkeeping of saves: which are due, which this rank has written, which all ranks have committed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from raymat.checkpoint.manifest import CheckpointId

_REMEMBERED = 8
"""Written but unconfirmed shares that a rank remembers; older ones are superseded anyway."""


@dataclass(frozen=True)
class Commit:
    """A checkpoint that all ranks have written."""

    checkpoint: CheckpointId
    bytes: int
    """Of this rank's tensors."""
    seconds: float
    """From this rank's snapshot until its share was durable."""


class CommitTracker:
    """One rank's record of saves; the caller holds a lock."""

    def __init__(self) -> None:
        self._due: list[tuple[int, float]] = []
        self._durable: dict[CheckpointId, Commit] = {}

    @property
    def durable(self) -> frozenset[CheckpointId]:
        """Checkpoints whose share is written here and that are not confirmed yet."""
        return frozenset(self._durable)

    def add_due(self, step: int) -> None:
        """Note that a save of `step` is due now."""
        self._due.append((step, time.monotonic()))

    def age(self) -> float:
        """Return the seconds since the oldest save was due that is newer than the newest commit; 0 if there is none."""
        return time.monotonic() - self._due[0][1] if self._due else 0.0

    def add_written(self, commit: Commit) -> None:
        """Note that this rank's share is durable."""
        self._durable[commit.checkpoint] = commit
        self._durable = dict(sorted(self._durable.items())[-_REMEMBERED:])

    def confirm(self, checkpoints: Iterable[CheckpointId]) -> list[Commit]:
        """Note that all ranks have written these; return those that are new, oldest first."""
        commits = [self._durable[c] for c in sorted(set(checkpoints) & self._durable.keys())]
        if commits:
            newest = commits[-1].checkpoint
            self._due = [(step, when) for step, when in self._due if step > newest.step]
            self._durable = {c: v for c, v in self._durable.items() if c > newest}
        return commits
