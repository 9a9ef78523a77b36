"""What the run's events tell of the workers that the cluster has room for: each time that the number changes."""

from __future__ import annotations

import threading

from raymat.storage.store import Store
from raymat.train.observability.attempt_events import RoomChanged
from raymat.train.observability.events import EventLog


class RoomLog:
    """Writes the events. Ray's controller, in which it lives, does not wait for storage.

    Args:
        least: workers that the run needs.
    """

    def __init__(self, store: Store, least: int) -> None:
        self._store, self._least = store, least
        self._told: int | None = None
        self._events: EventLog | None = None  # it cannot be pickled

    def note(self, workers: int) -> None:
        """Tell that there is room for so many, unless that was the last that was told."""
        if workers == self._told:
            return
        self._told = workers
        if self._events is None:
            self._events = EventLog.for_driver(self._store)
        event = RoomChanged(workers=workers, least=self._least)
        threading.Thread(
            target=self._events.emit, args=(event,), name="raymat-room", daemon=True
        ).start()
