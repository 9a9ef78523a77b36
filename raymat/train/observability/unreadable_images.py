"""Tells of files that could not be read and were replaced: each once, and how many examples that changed."""

from __future__ import annotations

from collections.abc import Iterable

from raymat.data.batch import MicroBatch, Replacement
from raymat.train.observability.events import EventLog

TOLD_AT_MOST = 100
"""Files that one worker names; more are only counted."""


class ReplacementReport:
    """One worker's count."""

    def __init__(self, events: EventLog) -> None:
        self.count = 0
        """Replaced pictures so far in this attempt."""
        self._events = events
        self._told: set[str] = set()

    def see(self, batch: MicroBatch) -> None:
        """Write a `replaced` event for each file that is new here."""
        self.note(batch.replaced)

    def note(self, replaced: Iterable[Replacement]) -> None:
        """As `see`, for batches that were seen elsewhere."""
        for found in replaced:
            self.count += 1
            if found.path in self._told or len(self._told) >= TOLD_AT_MOST:
                continue
            self._told.add(found.path)
            self._events.emit(
                "replaced", path=found.path, reason=found.reason, example=found.number
            )
