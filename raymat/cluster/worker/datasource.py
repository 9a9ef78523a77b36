"""A Ray Data source of micro-batches: in order, one row and one block each, from any step on.

Ray Data cannot save the position of an iterator, and its start-up grows with the number of read tasks. So the stream is
cut into windows. Rank 0 writes a window to the blackboard, all ranks meet at a barrier, and each then runs one pass over
its split of the same dataset, whose read tasks are made from that window. With `preserve_order`, one block per row, and
rows laid out step by step and rank by rank, the round-robin split hands every rank its share of every step.
`raymat.cluster.worker.ray_feed` is the ranks' side. This one runs in the read tasks' processes, and imports no torch, which
would cost each of them seconds at its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata

from raymat.cluster.blackboard import Blackboard, Window
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
MAX_TASKS_PER_WINDOW = 500
"""Start-up costs about 0.8 ms a task."""
MAX_TASK_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StreamPlan:
    """What a read task needs to make any micro-batch; small and picklable."""

    source: SourceSpec
    order: SampleOrder
    geometry: Geometry


def row_bytes(side: int, share: int) -> int:
    """Return the size of a micro-batch of `share` samples of `side` pixels: foreground, background and alpha."""
    return share * side * side * 7


def rows_per_task(plan: StreamPlan, window: Window) -> int:
    """Return how many micro-batches one read task makes: enough to last, few enough to fit and to keep every slot busy."""
    share = math.ceil(plan.order.batch_size / window.world)
    rows = (window.end - window.first) * window.world
    return max(1, min(task_rows(plan.geometry.resolution, share), rows // 4))


def task_rows(side: int, share: int) -> int:
    """Return the same for a window without end."""
    seconds = share * (0.005 + SECONDS_PER_MEGAPIXEL * side * side / 1e6)
    by_bytes = MAX_TASK_BYTES // max(1, row_bytes(side, share))
    return max(1, min(math.ceil(TASK_SECONDS / seconds), by_bytes, MAX_ROWS_PER_TASK))


def make_row(plan: StreamPlan, window: Window, row: int) -> MicroBatch:
    """Make row `row` of a window: rows go step by step, and within a step rank by rank."""
    step = window.first + row // window.world
    world = World(row % window.world, window.world)
    source = plan.source.open()
    if window.kind == "train":
        shares = plan.order.shares(step, world)
        return make_train_batch(source, plan.order, plan.geometry, step, shares)
    first = step * plan.order.batch_size
    count = min(plan.order.batch_size, plan.order.valid_examples - first)
    return make_valid_batch(source, plan.order, plan.geometry, first, world.share(count))


def _read(plan: StreamPlan, window: Window, rows: range) -> Iterable[pa.Table]:
    for row in rows:
        columns = make_row(plan, window, row).to_columns()
        columns["rank"] = row % window.world
        yield pa.table({name: [value] for name, value in columns.items()})


class WindowDatasource(Datasource):
    """The read tasks of the window that stands on the blackboard when an execution starts."""

    def __init__(self, plan: StreamPlan, board: Blackboard) -> None:
        super().__init__()
        self._plan = plan
        self._board = board

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
        window = self._board.window()
        if window is None:  # planning before the first window needs the form only
            return []
        rows = (window.end - window.first) * window.world
        size = rows_per_task(self._plan, window)
        return [
            self._task(window, range(start, min(start + size, rows)))
            for start in range(0, rows, size)
        ]

    def _task(self, window: Window, rows: range) -> ReadTask:
        plan = self._plan
        metadata = BlockMetadata(
            num_rows=len(rows), size_bytes=None, input_files=None, exec_stats=None
        )
        return ReadTask(lambda: _read(plan, window, rows), metadata)


def dataset_factory(
    plan: StreamPlan, board: Blackboard, decode_tasks: int | None
) -> Callable[[], ray.data.Dataset]:
    """Return what TorchTrainer calls at every start of the workers to make the dataset."""

    def make() -> ray.data.Dataset:
        context = DataContext.get_current()
        # Blocks are merged up to this size: 1 keeps every row a block of its own, which the
        # round-robin split needs. It must be set here: the driver's context is not the one that the
        # controller builds the dataset with.
        context.target_max_block_size = 1
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        return ray.data.read_datasource(
            WindowDatasource(plan, board),
            override_num_blocks=1,
            concurrency=decode_tasks,
            num_cpus=1,
        )

    return make
