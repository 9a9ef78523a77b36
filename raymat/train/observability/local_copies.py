"""Reports on a worker's local cache: an event for each fault."""

from __future__ import annotations

from raymat.checkpoint.manifest import CheckpointId
from raymat.train.observability.checkpoint_events import LocalCopiesOff, LocalCopyDamaged
from raymat.train.observability.events import EventLog


class LocalCacheReport:
    """An observer of a local cache that writes an event for each fault."""

    def __init__(self, events: EventLog) -> None:
        self._events = events

    def copy_damaged(self, checkpoint: CheckpointId, file: str, reason: str) -> None:
        self._events.emit(LocalCopyDamaged(checkpoint=str(checkpoint), file=file, reason=reason))

    def copies_off(self, reason: str) -> None:
        self._events.emit(LocalCopiesOff(reason=reason))
