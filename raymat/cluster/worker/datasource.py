"""A Ray Data source of one rank's micro-batches: in order, from any step on.

Ray Data cannot save the position of an iterator, and its start-up grows with the number of read tasks. So a rank's stream is
cut into windows, each a dataset of its own that the rank itself reads: no process sees the rows of two ranks, and no rank waits
for another. A row is a micro-batch, a block holds as many of them as fit, and a read task makes several.
`raymat.cluster.worker.window_stream` reads a window. This file runs in the read tasks' processes, and imports no torch, which
would cost each of them seconds at its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from raymat.data.batch import Geometry, MicroBatch
from raymat.data.batch_maker import make_train_batch, make_valid_batch
from raymat.data.dataset.source import SourceSpec
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World

TASK_SECONDS = 1.5
"""What a read task should last: the scheduler wakes every 0.1 s at worst."""
SECONDS_PER_MEGAPIXEL = 0.03
"""For decoding and warping one sample, from benchmarks/data_path.py."""
MAX_ROWS_PER_TASK = 50
MAX_TASKS_PER_WINDOW = 100
"""Start-up costs about 0.8 ms a task."""
MAX_TASK_BYTES = 256 * 2**20
BLOCK_BYTES = 32 * 2**20
"""Rows that are smaller together share a block: each block costs Ray Data several milliseconds."""


@dataclass(frozen=True)
class StreamPlan:
    """What a read task needs to make any micro-batch; small and picklable."""

    source: SourceSpec
    order: SampleOrder
    geometry: Geometry


@dataclass(frozen=True)
class Window:
    """A piece of one rank's stream: its share of training steps, or of validation batches, first..end (end excluded)."""

    kind: Literal["train", "valid"]
    first: int
    end: int
    world: World

    @property
    def rows(self) -> int:
        return self.end - self.first


def row_bytes(side: int, share: int) -> int:
    """Return the size of a micro-batch of `share` samples of `side` pixels: foreground, background and alpha."""
    return share * side * side * 7


def task_rows(side: int, share: int) -> int:
    """Return how many micro-batches one read task makes: enough to last, few enough to fit."""
    seconds = share * (0.005 + SECONDS_PER_MEGAPIXEL * side * side / 1e6)
    by_bytes = MAX_TASK_BYTES // max(1, row_bytes(side, share))
    return max(1, min(math.ceil(TASK_SECONDS / seconds), by_bytes, MAX_ROWS_PER_TASK))


def rows_per_task(plan: StreamPlan, world: World) -> int:
    """Return the same for a rank of `world`."""
    return task_rows(plan.geometry.resolution, math.ceil(plan.order.batch_size / world.size))


def cut(rows: int, size: int, cold: bool) -> list[range]:
    """Cut a window's rows into those of each read task: `size` at most, and work for several cores.

    `cold`: somebody waits for the first row, which comes with the others of its block: the first tasks are short.
    """
    size = max(1, min(size, rows // 4))
    found, start, most = [], 0, 1 if cold else size
    while start < rows:
        found.append(range(start, min(start + most, rows)))
        start, most = found[-1].stop, min(2 * most, size)
    return found


def make_row(plan: StreamPlan, window: Window, row: int) -> MicroBatch:
    """Make row `row` of a window."""
    step = window.first + row
    source = plan.source.open()
    if window.kind == "train":
        shares = plan.order.shares(step, window.world)
        return make_train_batch(source, plan.order, plan.geometry, step, shares)
    first = step * plan.order.batch_size
    count = min(plan.order.batch_size, plan.order.valid_examples - first)
    return make_valid_batch(source, plan.order, plan.geometry, first, window.world.share(count))


def read_rows(plan: StreamPlan, window: Window, rows: range) -> Iterable[pa.Table]:
    """Make rows of a window, each as a table of its own."""
    for row in rows:
        columns = make_row(plan, window, row).to_columns()
        columns |= {"rank": window.world.rank, "world": window.world.size}
        yield pa.table({name: _cell(value) for name, value in columns.items()})


def _cell(value: Any) -> pa.Array:
    """Return a column of one value; bytes that are only viewed stay where they are, alive as long as the column.

    Arrow copies a view that it is given in a list, and never lets go of it: each row's pixels would stay in the process.
    """
    if not isinstance(value, memoryview):
        return pa.array([value])
    offsets = np.array([0, value.nbytes], np.int32)
    return pa.Array.from_buffers(pa.binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(value)])


class WindowDatasource(Datasource):
    """The read tasks of a window, `tasks` being the rows of each."""

    def __init__(self, plan: StreamPlan, window: Window, tasks: list[range]) -> None:
        super().__init__()
        self._plan, self._window, self._tasks = plan, window, tasks

    def get_name(self) -> str:
        return "MicroBatch"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        return [self._task(rows) for rows in self._tasks]

    def _task(self, rows: range) -> ReadTask:
        plan, window = self._plan, self._window
        metadata = BlockMetadata(
            num_rows=len(rows), size_bytes=None, input_files=None, exec_stats=None
        )
        return ReadTask(lambda: read_rows(plan, window, rows), metadata)
