"""Where a run's curves go: the one interface of everything that records them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
"""One JSON-able row: kind (train or valid), step, examples, epoch, loss (None if not finite), digest, time (Unix
seconds); training rows also lr (by part of the network), validation rows count and metrics (by name, None if not finite)."""


class Logger(Protocol):
    """Records rows and pictures, on rank 0 alone.

    Rows are held until `flush`: what a restart will replay must not be seen twice. Rows and cuts come from the training
    thread, flushes from the one that writes checkpoints.
    """

    def resumed(self, step: int) -> None:
        """The run goes on after `step` completed steps (0: from the start); later ones will come again."""

    def row(self, row: Row) -> None:
        """A training or validation row."""

    def images(self, step: int, grids: Mapping[str, NDArray[np.uint8]]) -> None:
        """Named pictures, each (H, W, 3) RGB or (H, W) grey."""

    def cut(self, step: int) -> None:
        """A checkpoint of `step` is taken: what came since the last cut belongs to it."""

    def flush(self, step: int) -> None:
        """Write what belongs to the cuts up to `step`, whose checkpoint is about to be committed.

        Raises:
            StorageError: it could not be written; it is kept for the next flush.
        """


class Spans:
    """Named objects that are made in one thread and written in another, in order, each once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, str, Any]] = []

    def add(self, step: int, name: str, content: Any) -> None:
        """Hold `content` for the first flush of `step` or later."""
        with self._lock:
            self._waiting.append((step, name, content))

    def flush(self, step: int, write: Callable[[str, Any], None]) -> None:
        """`write` name and content of each that belongs to `step` or before; what raises is kept, with all after it."""
        while True:
            with self._lock:
                if not self._waiting or self._waiting[0][0] > step:
                    return
                _, name, content = self._waiting[0]
            write(name, content)
            with self._lock:
                del self._waiting[0]
