"""A logger that hands rows to a service, which may be slow, down or restarted: training notices none of it.

What counts lies in metrics/, which is flushed before; the service shows a copy. So nothing has to be kept where the service is
down: whatever it lacks is read there again, after a restart, after an outage, or where a service was named only later.
And no step comes twice: a restart replays steps after the newest commit, and the service is asked what it has of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raymat.errors import RaymatError, one_line
from raymat.storage.store import Store
from raymat.storage.urls import redact_text
from raymat.train.observability.event import Event
from raymat.train.observability.logger import Row
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.observability.training_events import LoggerBehind, LoggerCaughtUp

log = logging.getLogger(__name__)

MOST_ROWS = 10_000
"""Rows that wait in memory, some 10 MB, while the service is slow; if more come, or it fails, they wait in metrics/ alone."""
END_SECONDS = 15.0
"""How long the end of a run waits at most for its service."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a service is told of a run, and where the logger reads what the service lacks."""

    run_id: str
    name: str
    config: Mapping[str, Any]
    """JSON-able values by option."""
    store: Store
    environment: Mapping[str, str]
    """The process's environment variables."""
    emit: Callable[[Event], None]


class ServiceError(RaymatError):
    """Refusal or silence of a service; it may pass."""


class Service(Protocol):
    """A service's own API. Called in one thread, not the training thread. All methods raise ServiceError."""

    name: str

    def connect(self) -> None:
        """Find or begin the run there, and what it has. Called again after each error."""

    def send(self, rows: Sequence[Row]) -> None:
        """Send rows, oldest first, but what is there already."""

    def close(self) -> None:
        """Mark the run as complete."""


class ServiceLogger:
    """A logger whose thread sends what is flushed."""

    def __init__(self, service: Service, run: LoggedRun, most: int = MOST_ROWS) -> None:
        """`most`: rows that may wait in memory."""
        self._service, self._run, self._most = service, run, most
        self._held: list[tuple[int | None, Row]] = []
        """Rows with the step of their cut; None: not yet cut."""
        self._changed = threading.Condition()
        """Guards all that follows, and what is held."""
        self._ready: list[Row] = []
        """Rows that the thread has to send."""
        self._reread = 0
        """Up to this step, what the service lacks is read from metrics/; 0: nothing is."""
        self._flushed = 0
        self._due = self._closing = self._connected = self._behind = False
        # A daemon: a process that ends must not wait for a service.
        self._thread = threading.Thread(
            target=self._work, name=f"raymat-{service.name}", daemon=True
        )
        self._thread.start()

    def resumed(self, step: int) -> None:
        """Send what the service lacks of the steps up to `step`."""
        with self._changed:
            self._reread = self._flushed = step
            self._due = step > 0
            self._changed.notify_all()

    def row(self, row: Row) -> None:
        with self._changed:
            self._held.append((None, row))

    def images(self, step: int, grids: Mapping[str, NDArray[np.uint8]]) -> None:
        return

    def cut(self, step: int) -> None:
        with self._changed:
            self._held = [(step if cut is None else cut, row) for cut, row in self._held]

    def flush(self, step: int) -> None:
        """Have the thread send what belongs to the cuts up to `step`; returns at once."""
        with self._changed:
            held = self._held
            self._ready += [row for cut, row in held if cut is not None and cut <= step]
            self._held = [each for each in held if each[0] is None or each[0] > step]
            self._flushed = max(self._flushed, step)
            if len(self._ready) > self._most:
                self._read_again()
            self._due = True
            self._changed.notify_all()

    def close(self, seconds: float = END_SECONDS) -> None:
        """Send what is flushed and end, within `seconds` if the service lets it."""
        with self._changed:
            self._closing = self._due = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._run.emit(
                LoggerBehind(
                    logger=self._service.name, step=self._flushed, reason="no answer in time"
                )
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due)
                self._due, closing = False, self._closing
            delivered = self._try(self._deliver)
            if closing:
                if delivered:
                    self._try(self._service.close)
                return

    def _try(self, action: Callable[[], None]) -> bool:
        """Call `action`; return whether that went well. What it raises is said once, until it does."""
        try:
            action()
        except RaymatError as error:
            self._failed(error.line)
        except Exception as error:
            log.exception("%s: unexpected error", self._service.name)
            self._failed(f"{type(error).__name__}: {one_line(error)}")
        else:
            if self._behind:
                self._run.emit(LoggerCaughtUp(logger=self._service.name, step=self._flushed))
            self._behind = False
            return True
        return False

    def _read_again(self) -> None:
        """Leave what waits to metrics/, which has it."""
        self._ready, self._reread = [], self._flushed

    def _failed(self, why: str) -> None:
        self._connected = False
        with self._changed:
            self._read_again()
        if not self._behind:
            self._run.emit(
                LoggerBehind(logger=self._service.name, step=self._flushed, reason=redact_text(why))
            )
        self._behind = True

    def _deliver(self) -> None:
        if not self._connected:
            self._service.connect()
            self._connected = True
        with self._changed:
            reread, count = self._reread, len(self._ready)
            rows: Iterable[Row] = self._ready[:count]
        if reread:
            stored = (row for row in read_metrics(self._run.store) if row["step"] <= reread)
            rows = [*stored, *rows]
        self._service.send(list(rows))
        with self._changed:
            if self._reread == reread:  # else the buffer was full meanwhile
                self._reread = 0
                del self._ready[:count]
