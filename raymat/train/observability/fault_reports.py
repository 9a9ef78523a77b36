"""Reports on faults that training survives: events, and a count of replaced images."""

from __future__ import annotations

from collections.abc import Iterable

from raymat.checkpoint.manifest import CheckpointId
from raymat.data.batch import Replacement
from raymat.errors import StorageError
from raymat.train.observability.checkpoint_events import (
    LocalCopiesOff,
    LocalCopyDamaged,
    SaveFailed,
)
from raymat.train.observability.events import EventLog
from raymat.train.observability.training_events import ImageReplaced

MAX_NAMED = 100
"""Maximum number of files that one worker names; more are only counted."""


class ReplacementReport:
    """One worker's report of images that could not be read and were replaced."""

    def __init__(self, events: EventLog) -> None:
        self.count = 0
        """Replaced images so far in this attempt."""
        self._events = events
        self._named: set[str] = set()

    def add(self, replaced: Iterable[Replacement]) -> None:
        """Count `replaced`, and write an event for each file that was not named before."""
        for found in replaced:
            self.count += 1
            if found.path not in self._named and len(self._named) < MAX_NAMED:
                self._named.add(found.path)
                self._events.emit(
                    ImageReplaced(path=found.path, reason=found.reason, example=found.number)
                )


class SaveFailureReport:
    """A callback of the checkpoint writer, in its thread: an event for a checkpoint's first fault, and if it is given up."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._failing: CheckpointId | None = None

    def __call__(self, checkpoint: CheckpointId, error: StorageError, final: bool) -> None:
        if final or checkpoint != self._failing:
            self._failing = checkpoint
            self._events.emit(
                SaveFailed(checkpoint=str(checkpoint), given_up=final, error=error.line)
            )


class LocalCacheReport:
    """An observer of the local cache that writes an event for each fault."""

    def __init__(self, events: EventLog) -> None:
        self._events = events

    def copy_damaged(self, checkpoint: CheckpointId, file: str, reason: str) -> None:
        self._events.emit(LocalCopyDamaged(checkpoint=str(checkpoint), file=file, reason=reason))

    def copies_off(self, reason: str) -> None:
        self._events.emit(LocalCopiesOff(reason=reason))
