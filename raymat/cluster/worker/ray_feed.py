"""A rank's feed on Ray: windows of its own stream, one after the other, the next ones opened ahead."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import ray
from ray.exceptions import RayError

from raymat.cluster.worker.datasource import (
    MAX_TASKS_PER_WINDOW,
    StreamPlan,
    Window,
    rows_per_task,
)
from raymat.cluster.worker.window_stream import WindowStream, lead
from raymat.data.batch import MicroBatch
from raymat.data.feed import Stretch
from raymat.distributed.world import World

log = logging.getLogger(__name__)

MAX_AHEAD = 2
"""Windows that are opened before they are asked for: each is a dataset with threads of its own."""


class RayFeed:
    """The training loop's feed on Ray: one rank's micro-batches from Ray Data. It asks nothing of other ranks."""

    def __init__(self, plan: StreamPlan, world: World, count_slots: Callable[[], int]) -> None:
        """`count_slots` returns how many read tasks of this rank may run at the same time."""
        self._plan, self._world, self._count_slots = plan, world, count_slots
        self._task_rows = rows_per_task(plan, world)
        self._current: WindowStream | None = None
        self._ahead: deque[WindowStream] = deque()
        """Opened in the order in which they are expected to be asked for."""
        self._expected: Iterator[Window] = iter(())
        """What is to be opened after those."""

    def expect(self, stretches: Iterable[Stretch]) -> None:
        """Open the first windows of what will be asked for, and go on as they are taken."""
        self._forget()
        self._expected = (window for stretch in stretches for window in self._windows(stretch))
        self._open_ahead()

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        """Yield this rank's share of steps first_step..end_step-1, in order."""
        return self._batches(Stretch("train", first_step, end_step))

    def valid(self) -> Iterator[MicroBatch]:
        """Yield this rank's share of the validation batches, in order."""
        return self._batches(Stretch("valid"))

    def _batches(self, stretch: Stretch) -> Iterator[MicroBatch]:
        for window in self._windows(stretch):
            self._current = stream = self._take(window)
            try:
                for batch in stream.batches():
                    self._open_ahead()
                    yield batch
            finally:
                stream.close()

    def _windows(self, stretch: Stretch) -> Iterator[Window]:
        order = self._plan.order
        first, end = stretch.first, stretch.end
        if stretch.kind == "valid":
            first, end = 0, math.ceil(order.valid_examples / order.batch_size)
        steps = MAX_TASKS_PER_WINDOW * self._task_rows
        for start in range(first, end, steps):
            yield Window(stretch.kind, start, min(start + steps, end), self._world)

    def _take(self, window: Window) -> WindowStream:
        """Return the stream of a window that is asked for now: opened ahead, or else anew."""
        if any(stream.window == window for stream in self._ahead):
            while (stream := self._ahead.popleft()).window != window:
                stream.close()
            return stream
        if window.kind == "train":  # what was opened for other steps will not be asked for
            self._forget()
        return WindowStream(self._plan, window, self._count_slots)

    def _open_ahead(self) -> None:
        """Open the next window once all tasks of those before it may have begun."""
        while len(self._ahead) < MAX_AHEAD:
            last = self._ahead[-1] if self._ahead else self._current
            if last is not None and last.untaken >= lead(last.slots, self._task_rows):
                return
            window = next(self._expected, None)
            if window is None:
                return
            self._ahead.append(WindowStream(self._plan, window, self._count_slots, last))

    def _forget(self) -> None:
        for stream in self._ahead:
            stream.close()
        self._ahead.clear()
        self._expected = iter(())


def slots_of(
    world: World, decode_tasks: int | None, per_worker: Mapping[str, float]
) -> Callable[[], int]:
    """Return a function that counts the read tasks of a rank that may run at the same time, 1 at least.

    Args:
        decode_tasks: of all ranks together; None: as many as the cluster's cores at that moment, less the workers'.
        per_worker: what a worker asks of Ray.
    """

    def count() -> int:
        if decode_tasks is not None:
            return max(1, len(world.share(decode_tasks)))
        try:
            cores = ray.cluster_resources().get("CPU", 0)
        except (RayError, ConnectionError, TimeoutError, RuntimeError) as error:
            log.warning("cannot ask how many cores the cluster has: %s", error)
            return 1
        return max(1, math.ceil(cores / world.size - per_worker.get("CPU", 0)))

    return count
