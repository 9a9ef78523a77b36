"""What Ray's controller sees of a run, written to its events."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from raymat.checkpoint.store import Store
from raymat.cluster.trainer import signature
from raymat.train.events import EventLog


class FailureLog(UserCallback):
    """Writes a `failure` event for every worker group that failed: rank, kind and first line of
    each error."""

    def __init__(self, storage: str, name: str) -> None:
        self._storage = storage
        self._name = name
        self._events: EventLog | None = None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called by the controller when workers raised or died."""
        told = {str(rank): signature(error) for rank, error in sorted(worker_exceptions.items())}
        self._log().emit("failure", ranks=told)

    def _log(self) -> EventLog:
        if self._events is None:
            self._events = EventLog.for_driver(Store.open(self._storage, self._name))
        return self._events
