"""Feed without Ray: the same micro-batches, made by threads of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from raymat.data.batch import Geometry, MicroBatch
from raymat.data.batch_maker import make_train_batch, make_valid_batch
from raymat.data.dataset.source import Source
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World


class LocalFeed:
    """Feed of one worker's micro-batches, made by threads.

    Args:
        threads: how many batches are made at the same time, and at most so many more wait to be
            taken.
    """

    def __init__(
        self,
        source: Source,
        order: SampleOrder,
        geometry: Geometry,
        world: World | None = None,
        threads: int = 1,
    ) -> None:
        self._source = source
        self._order = order
        self._geometry = geometry
        self._world = world or World()
        self._threads = threads

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        """Yield this worker's share of the steps `first_step` to `end_step` - 1."""
        return self._in_order(self._train_batch, range(first_step, end_step))

    def valid(self) -> Iterator[MicroBatch]:
        """Yield this worker's share of the validation batches."""
        order = self._order
        return self._in_order(self._valid_batch, range(0, order.valid_examples, order.batch_size))

    def _train_batch(self, step: int) -> MicroBatch:
        shares = self._order.shares(step, self._world)
        return make_train_batch(self._source, self._order, self._geometry, step, shares)

    def _valid_batch(self, first: int) -> MicroBatch:
        order = self._order
        share = self._world.share(min(order.batch_size, order.valid_examples - first))
        return make_valid_batch(self._source, order, self._geometry, first, share)

    def _in_order(
        self, make: Callable[[int], MicroBatch], items: Iterable[int]
    ) -> Iterator[MicroBatch]:
        """Yield `make(item)` for each item, computed ahead; its exception is raised at that item's turn."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="raymat-feed")
        pending: deque[Future[MicroBatch]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(make, item))
                if len(pending) > 2 * self._threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Feed(Protocol):
    """Source of this worker's share of the run's batches."""

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        """Yield this worker's share (perhaps empty) of the steps first_step..end_step-1, in order."""

    def valid(self) -> Iterator[MicroBatch]:
        """Yield this worker's share of the validation examples, in batches."""
