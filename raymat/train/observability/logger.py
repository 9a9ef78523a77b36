"""The interface of whatever records a run's curves and images."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
"""One row, which JSON can hold: kind (train or valid), step, examples, epoch, loss (None if not finite), digest, time (Unix
seconds). Training rows also have lr (by part of the network) and the MEASURED columns, validation rows count and metrics (by
name, None if not finite)."""

MEASURED = ("time", "step_seconds", "data_wait", "examples_per_second", "memory", "goodput")
"""Columns that say when and how fast a step was, and so differ between a killed run and an undisturbed one: step_seconds (mean
since the training row before, without validations and saves), data_wait (share of it that the worker which waited longest
waited for its batches, 0 to 1), examples_per_second (of all workers together), memory (bytes, the largest of any worker: the
most that was allocated on its GPU since the row before, or the process's resident memory on the CPU), goodput (share of all
workers' time, 0 to 1, that was training which counts, as the driver knew it up to half a minute before; missing until then)."""


def scalars(row: Row) -> dict[str, float]:
    """Return a row's finite numbers by the names of their curves: loss, lr/PART, speed/COLUMN, valid_METRIC and others."""
    found = {"valid_loss" if row["kind"] == "valid" else "loss": row["loss"]}
    if row["kind"] == "valid":
        found |= {f"valid_{name}": value for name, value in row.get("metrics", {}).items()}
    else:
        found["epoch"] = row["epoch"]
        found |= {f"lr/{part}": rate for part, rate in row["lr"].items()}
        found |= {f"speed/{name}": row.get(name) for name in MEASURED[1:-1]}
        found["goodput"] = row.get("goodput")
    return {name: value for name, value in found.items() if value is not None}


class Logger(Protocol):
    """A recorder of rows and images, on rank 0 alone.

    It holds rows until `flush`, since a restart replays steps after the newest commit and nobody should see them twice.
    The training thread calls `row`, `images` and `cut`; the thread that writes checkpoints calls `flush`. One that has a `close`
    too (`ClosableLogger`) is closed at the run's end.
    """

    def resumed(self, step: int) -> None:
        """Note that the run goes on after `step` completed steps (0: from the start); later ones will come again."""

    def row(self, row: Row) -> None:
        """Record a training or validation row."""

    def images(self, step: int, grids: Mapping[str, NDArray[np.uint8]]) -> None:
        """Record named images, each (H, W, 3) RGB or (H, W) grey, 0 to 255."""

    def cut(self, step: int) -> None:
        """Note that a snapshot of `step` was taken: what came since the last cut belongs to it."""

    def flush(self, step: int) -> None:
        """Write what belongs to the cuts up to `step`, whose checkpoint is about to be committed.

        Raises:
            StorageError: it could not be written, and is kept for the next flush.
        """


@runtime_checkable
class ClosableLogger(Protocol):
    """A logger that has something to do when the run is complete."""

    def close(self) -> None:
        """Finish; nothing comes after it. Must not take more than some seconds."""


class Spans:
    """A queue of named objects that one thread makes and another writes: in order, each once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, str, Any]] = []

    def add(self, step: int, name: str, content: Any) -> None:
        """Hold `content` for the first flush of `step` or later."""
        with self._lock:
            self._waiting.append((step, name, content))

    def flush(self, step: int, write: Callable[[str, Any], None]) -> None:
        """Call `write(name, content)` for all of `step` or before; if it raises, that one and all after it are kept."""
        while True:
            with self._lock:
                if not self._waiting or self._waiting[0][0] > step:
                    return
                _, name, content = self._waiting[0]
            write(name, content)  # not under the lock: `add` must not wait for storage
            with self._lock:
                del self._waiting[0]
