"""Bookkeeping of saves: which are due, which this rank has written, which all ranks have committed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import StorageError

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


@dataclass(frozen=True)
class Counts:
    """Numbers of saves so far, by what became of them."""

    begun: int = 0
    joined: int = 0
    skipped: int = 0
    waited: int = 0
    written: int = 0
    given_up: int = 0


class CommitTracker:
    """Record of one rank's saves, shared by the training thread and the writer's under `lock`."""

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._counts: Counter[str] = Counter()
        self._due: list[tuple[int, float]] = []
        self._durable: dict[CheckpointId, Commit] = {}
        self.last_written: CheckpointId | None = None
        """Newest checkpoint whose share is durable."""
        self.last_error: StorageError | None = None
        """Error of the newest try, if it failed."""

    @property
    def counts(self) -> Counts:
        """Numbers of saves so far."""
        with self._lock:
            return Counts(**self._counts)

    @property
    def durable(self) -> frozenset[CheckpointId]:
        """Checkpoints whose share is written here and that are not confirmed yet."""
        with self._lock:
            return frozenset(self._durable)

    def age(self) -> float:
        """Return the seconds since the oldest save was due that is newer than the newest commit; 0 if there is none."""
        with self._lock:
            return time.monotonic() - self._due[0][1] if self._due else 0.0

    def add_due(self, step: int) -> None:
        """Note that a save of `step` is due now."""
        with self._lock:
            self._due.append((step, time.monotonic()))

    def count(self, *outcomes: str) -> None:
        """Count a save under each of `outcomes`, which are names of `Counts`."""
        with self._lock:
            self._counts.update(outcomes)

    def add_failure(self, error: StorageError) -> None:
        """Note that a try to write failed."""
        with self._lock:
            self.last_error = error

    def add_written(self, commit: Commit) -> None:
        """Note that this rank's share is durable."""
        with self._lock:
            self._counts["written"] += 1
            self.last_written, self.last_error = commit.checkpoint, None
            self._durable[commit.checkpoint] = commit
            self._durable = dict(sorted(self._durable.items())[-_REMEMBERED:])

    def confirm(self, checkpoints: Iterable[CheckpointId]) -> list[Commit]:
        """Note that all ranks have written these; return those that are new, oldest first."""
        with self._lock:
            commits = [self._durable[c] for c in sorted(set(checkpoints) & self._durable.keys())]
            if commits:
                newest = commits[-1].checkpoint
                self._due = [(step, when) for step, when in self._due if step > newest.step]
                self._durable = {c: v for c, v in self._durable.items() if c > newest}
            return commits
