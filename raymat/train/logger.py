"""Where a run's curves go: the one interface of everything that records them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
"""One JSON-able row: kind (train or valid), step, examples, epoch, loss (None if not finite), digest, time (Unix
seconds); training rows also lr (by part of the network)."""


class Logger(Protocol):
    """Records rows and pictures, on rank 0 alone.

    Rows are held until `flush`: what a restart will replay must not be seen twice.
    """

    def resumed(self, step: int) -> None:
        """The run goes on after `step` completed steps (0: from the start); later ones will come again."""

    def row(self, row: Row) -> None:
        """A training or validation row."""

    def images(self, step: int, grids: Mapping[str, NDArray[np.uint8]]) -> None:
        """Named pictures, each (H, W, 3) RGB or (H, W) grey."""

    def flush(self, step: int) -> None:
        """Write what came since the last flush: a checkpoint of `step` is about to be committed.

        Raises:
            StorageError: it could not be written; it is kept for the next flush.
        """
