"""What share of a run's time counts, for as long as its driver shows it: read from the run's events now and then."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from raymat.analysis.goodput.ledger import make_ledger
from raymat.analysis.runs.event_reader import EventReader
from raymat.analysis.runs.summary import MALFORMED
from raymat.errors import StorageError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store

log = logging.getLogger(__name__)

SECONDS = 20.0
"""Between two looks: each is a listing, and a read for each log that has grown."""
_PATIENCE = RetryPolicy(total=20.0)


class GoodputMeter:
    """Reads the goodput of a run in a thread while a block runs."""

    def __init__(
        self,
        store: Store,
        seconds: float = SECONDS,
        tell: Callable[[float], None] = lambda share: None,
    ) -> None:
        """`seconds`: between two looks, and before the first. `tell`: called with what each look has found."""
        self._tell = tell
        store = copy.copy(store)
        store.retry = _PATIENCE
        self._events, self._seconds = EventReader(store), seconds
        self.value: float | None = None
        """Share of the time of all workers that was training which counts, up to the newest look; None before the first."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raymat-goodput", daemon=True)

    def __enter__(self) -> GoodputMeter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()  # a look that waits for the storage is not waited for

    def _run(self) -> None:
        while not self._done.wait(self._seconds):
            try:
                self._look()
            except (StorageError, *MALFORMED) as error:
                log.info("the goodput cannot be read now: %s", error)

    def _look(self) -> None:
        self._events.refresh()
        ledger = make_ledger(self._events.events, until=time.time())
        known = self._events.whole and ledger.slot_seconds > 0
        self.value = ledger.goodput if known else None
        if self.value is not None:
            self._tell(self.value)
