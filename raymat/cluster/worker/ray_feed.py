"""A rank's side of Ray Data's stream: it asks for windows, and refuses batches that are not its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import torch.distributed as dist

from raymat.cluster.blackboard import Blackboard, Window
from raymat.cluster.worker.datasource import MAX_TASKS_PER_WINDOW, StreamPlan, rows_per_task
from raymat.data.batch import MicroBatch
from raymat.distributed.world import World
from raymat.errors import ClusterError


class RayFeed:
    """The training loop's feed on Ray: one rank's micro-batches from Ray Data."""

    def __init__(self, shard: Any, board: Blackboard, plan: StreamPlan, world: World) -> None:
        self._shard = shard
        self._board = board
        self._plan = plan
        self._world = world

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        """Yield this rank's share of steps first_step..end_step-1, in order."""
        probe = Window("train", first_step, end_step, self._world.size)
        rows = MAX_TASKS_PER_WINDOW * rows_per_task(self._plan, probe)
        steps = max(1, rows // self._world.size)
        for start in range(first_step, end_step, steps):
            yield from self._pass("train", start, min(start + steps, end_step))

    def valid(self) -> Iterator[MicroBatch]:
        """Yield this rank's share of the validation batches, in order."""
        order = self._plan.order
        batches = math.ceil(order.valid_examples / order.batch_size)
        if batches:
            yield from self._pass("valid", 0, batches)

    def _pass(self, kind: Any, first: int, end: int) -> Iterator[MicroBatch]:
        window = Window(kind, first, end, self._world.size)
        if self._world.rank == 0:
            self._board.set_window(window)
        # No rank may start its pass before the window stands: the read tasks are made from it.
        if self._world.size > 1:
            dist.barrier()
        batches = self._shard.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=2
        )
        expected = first
        for table in batches:
            yield self._checked(table, expected, end)
            expected += 1
        if expected != end:
            raise ClusterError(
                f"Ray Data ended the {kind} stream before step {expected}, expected up to {end - 1}"
            )

    def _checked(self, table: pa.Table, expected: int, end: int) -> MicroBatch:
        columns = {name: table.column(name)[0] for name in table.column_names}
        columns = {
            name: value.as_buffer() if pa.types.is_binary(value.type) else value.as_py()
            for name, value in columns.items()
        }
        rank = columns.pop("rank")
        batch = MicroBatch.from_columns(columns)
        if table.num_rows != 1 or rank != self._world.rank or batch.step != expected:
            raise ClusterError(
                f"Ray Data handed rank {self._world.rank} {table.num_rows} rows of step "
                f"{batch.step}, rank {rank}, where one row of step {expected} was due: the order "
                "of its blocks changed"
            )
        return batch
