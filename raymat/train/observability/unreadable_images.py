"""Reports on images that could not be read and were replaced: an event for each file, and a count."""

from __future__ import annotations

from collections.abc import Iterable

from raymat.data.batch import MicroBatch, Replacement
from raymat.train.observability.events import EventLog
from raymat.train.observability.training_events import ImageReplaced

MAX_NAMED = 100
"""Maximum number of files that one worker names; more are only counted."""


class ReplacementReport:
    """One worker's report of replaced images."""

    def __init__(self, events: EventLog) -> None:
        self.count = 0
        """Replaced images so far in this attempt."""
        self._events = events
        self._named: set[str] = set()

    def see(self, batch: MicroBatch) -> None:
        """Report what was replaced in `batch`."""
        self.note(batch.replaced)

    def note(self, replaced: Iterable[Replacement]) -> None:
        """Count `replaced`, and write a `replaced` event for each file that was not named before."""
        for found in replaced:
            self.count += 1
            if found.path not in self._named and len(self._named) < MAX_NAMED:
                self._named.add(found.path)
                self._events.emit(
                    ImageReplaced(path=found.path, reason=found.reason, example=found.number)
                )
