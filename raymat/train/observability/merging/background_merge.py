"""Merging beside training: a thread that is begun at some of the commits, and that a run never waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from raymat.errors import StorageError

log = logging.getLogger(__name__)

COMMITS = 16
"""Commits from one time to the next."""


class BackgroundMerge:
    """Runs merges, each of which merges one group and tells whether there may be another. For rank 0 alone."""

    def __init__(self, merges: Sequence[Callable[[], bool]]) -> None:
        self._merges = merges
        self._commits = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def committed(self) -> None:
        """Count a commit; begin to merge if it is time to, unless that is still under way."""
        self._commits += 1
        if self._commits % COMMITS == 1 and (self._thread is None or not self._thread.is_alive()):
            self._begin()

    def finish(self, timeout: float = 30.0) -> None:
        """Merge what the run leaves, for about `timeout` seconds at most; the rest is merged if the run ever goes on."""
        self._wait(timeout / 2)
        if self._thread is None or not self._thread.is_alive():
            self._begin()
        self._wait(timeout / 2)
        self._stop.set()

    def _wait(self, timeout: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout)

    def _begin(self) -> None:
        # A daemon: it may be killed at any point, and a process that ends must not wait for storage.
        self._thread = threading.Thread(target=self._work, name="merge", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for merge in self._merges:
            try:
                while not self._stop.is_set() and merge():
                    pass
            except StorageError as error:
                log.info("records are merged later: %s", error.line)
