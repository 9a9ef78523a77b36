"""One window of a rank's stream: a Ray Data dataset that a thread of this process reads ahead, and its rows, each checked."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import TaskUnschedulableError

from raymat.cluster.controller.prestart import reader_environment
from raymat.cluster.ray_data_internals import pace
from raymat.cluster.worker.datasource import (
    BLOCK_BYTES,
    StreamPlan,
    Window,
    WindowDatasource,
    cut,
    read_rows,
    rows_per_task,
)
from raymat.data.batch import MicroBatch
from raymat.distributed.world import World
from raymat.errors import ClusterError

log = logging.getLogger(__name__)

PREFETCHED_BLOCKS = 1
"""Fetched from other machines before they are asked for."""
POLL_SECONDS = 0.5
"""How often a thread whose rows nobody takes looks whether its stream was closed."""


def open_dataset(
    plan: StreamPlan, window: Window, tasks: list[range], slots: int
) -> ray.data.Dataset:
    """Make the dataset of a window; `tasks` are the rows of each read task, of which at most `slots` run at the same time.

    A task runs on this machine if a core is free, so that pixels do not cross the network, else on any other.
    """
    here = ray.get_runtime_context().get_node_id()
    dataset = ray.data.read_datasource(
        WindowDatasource(plan, window, tasks),
        override_num_blocks=len(tasks),
        concurrency=min(slots, len(tasks)),
        num_cpus=1,
        label_selector={"ray.io/node-id": here},
        fallback_strategy=[{"label_selector": {"ray.io/node-id": f"!{here}"}}],
        runtime_env=reader_environment(),
    )
    context = dataset.context  # its own, no other dataset's
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    return dataset


class WindowStream:
    """The micro-batches of one window. A thread opens it at once; its tasks run ahead of who takes the rows, but not far.

    Its methods are called in one thread, but for `admits`.
    """

    def __init__(
        self,
        plan: StreamPlan,
        window: Window,
        count_slots: Callable[[], int],
        before: WindowStream | None = None,
    ) -> None:
        """`count_slots` returns how many tasks may run at the same time; it is called in the thread.

        `before`: the stream whose rows are taken before these; None: somebody waits for these.
        """
        self.window = window
        self.slots = 1
        """What `count_slots` returned."""
        self._plan, self._count_slots, self._before = plan, count_slots, before
        size = rows_per_task(plan, window.world)
        self._tasks = cut(window.rows, size, cold=before is None)
        self._task_rows = size
        self._taken = 0
        self._tables: queue.Queue[pa.Table | BaseException] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        name = f"raymat-{window.kind}-{window.first}"
        threading.Thread(target=self._read, name=name, daemon=True).start()

    @property
    def untaken(self) -> int:
        """How many rows of this window and of those before it nobody has taken."""
        if self._closed.is_set():
            return 0
        return self._untaken_before + self.window.rows - self._taken

    @property
    def _untaken_before(self) -> int:
        before = self._before
        return 0 if before is None else before.untaken

    def admits(self, submitted: int, running: int) -> bool:
        """Let as many tasks run as there are slots, and as many more wait to be taken."""
        if running >= self.slots or submitted >= len(self._tasks):
            return False
        begun = self._untaken_before + self._tasks[submitted].start
        return begun - self._taken < lead(self.slots, self._task_rows)

    def batches(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches, in order. Those before must have been taken.

        Raises:
            ClusterError: Ray Data handed over another row than was due, or too few. DataError: the dataset cannot be read.
        """
        self._before = None
        try:
            while self._taken < self.window.rows:
                table = self._tables.get()
                if isinstance(table, BaseException):
                    raise table
                for row in range(table.num_rows):
                    batch = read_row(table, row, self.window, self.window.first + self._taken)
                    self._taken += 1
                    yield batch
                del table  # a block stays in the object store as long as anybody holds it
        finally:
            self.close()

    def close(self) -> None:
        """Have the thread end the stream, whatever is left of it; does not wait for that."""
        self._closed.set()
        with contextlib.suppress(queue.Empty):  # the thread may wait for room
            self._tables.get_nowait()

    def _read(self) -> None:
        """Put the blocks of the window into the queue, and at last what went wrong, if that ever shows."""
        # Ray Data would begin a log file for each dataset, hundreds an hour.
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        try:
            if self._put_all():
                window = self.window
                self._put(
                    ClusterError(
                        f"Ray Data ended the {window.kind} stream before step {window.end}"
                    )
                )
        except BaseException as error:  # raised again in the thread that takes the rows
            self._put(error)

    def _put_all(self) -> bool:
        """Put all blocks; return False if the stream was closed.

        While this machine is drained Ray starts no task on it, and where no other has a core, none at all. Training goes on until
        the machine is taken, so this process then makes the rest of the window itself.
        """
        done = 0
        try:
            with contextlib.closing(self._from_tasks()) as tables:
                for table in tables:
                    if not self._put(table):
                        return False
                    done += table.num_rows
        except TaskUnschedulableError:
            log.info(
                "no machine takes a read task: making rows from step %d on here",
                self.window.first + done,
            )
            rest = range(done, self.window.rows)
            return all(self._put(table) for table in read_rows(self._plan, self.window, rest))
        return True

    def _from_tasks(self) -> Generator[pa.Table, None, None]:
        """Yield the blocks as Ray Data's tasks make them."""
        self.slots = self._count_slots()
        dataset = open_dataset(self._plan, self.window, self._tasks, self.slots)
        with pace(dataset.context, self), contextlib.closing(_tables(dataset)) as tables:
            yield from tables

    def _put(self, item: pa.Table | BaseException) -> bool:
        """Put it once there is room; return False if the stream was closed."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._tables.put(item, timeout=POLL_SECONDS)
                return True
        return False


def lead(slots: int, task_rows: int) -> int:
    """Return how many rows may be begun before they are taken: those of two tasks in each slot."""
    return 2 * slots * task_rows


def read_row(table: pa.Table, row: int, window: Window, due: int) -> MicroBatch:
    """Return a row of a block, its pixels as views. Raises ClusterError if it is not that of step `due` in this window."""
    cells = {name: table.column(name).slice(row, 1) for name in table.column_names}
    columns = {
        name: _view(cell) if pa.types.is_binary(cell.type) else cell[0].as_py()
        for name, cell in cells.items()
    }
    world = World(columns.pop("rank"), columns.pop("world"))
    batch = MicroBatch.from_columns(columns)
    kind = "train" if batch.train else "valid"
    if (kind, batch.step, world) != (window.kind, due, window.world) or due >= window.end:
        mine = window.world
        raise ClusterError(
            f"Ray Data handed rank {mine.rank} of {mine.size} the {kind} row of step {batch.step} for rank {world.rank} of "
            f"{world.size}, where the {window.kind} row of step {due} was due: the order of its blocks changed"
        )
    return batch


def _view(cell: pa.ChunkedArray) -> pa.Buffer:
    """Return the bytes of a column of one row where they lie: Arrow's scalars copy them, tens of MB in a batch."""
    array = next(chunk for chunk in cell.chunks if len(chunk))
    _, offsets, data = array.buffers()
    first, end = np.frombuffer(offsets, np.int32)[array.offset : array.offset + 2].tolist()
    return pa.py_buffer(b"") if data is None else data.slice(first, end - first)


def _tables(dataset: ray.data.Dataset) -> Generator[pa.Table, None, None]:
    yield from dataset.iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=PREFETCHED_BLOCKS
    )
