"""Feed without Ray: the same micro-batches, made by threads of this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from raymat.data.batch import Geometry, MicroBatch
from raymat.data.batch_maker import make_train_batch, make_valid_batch
from raymat.data.dataset.source import Source
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Stretch:
    """What a feed is asked for in one call: training steps first..end-1, or (0, 0) all of the validation batches."""

    kind: Literal["train", "valid"]
    first: int = 0
    end: int = 0


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

    def expect(self, stretches: Iterable[Stretch]) -> None:
        """Nothing is made before it is asked for."""

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        """Yield this worker's share of the steps `first_step` to `end_step` - 1."""
        return in_order(self._train_batch, range(first_step, end_step), self._threads)

    def valid(self) -> Iterator[MicroBatch]:
        """Yield this worker's share of the validation batches."""
        order = self._order
        firsts = range(0, order.valid_examples, order.batch_size)
        return in_order(self._valid_batch, firsts, self._threads)

    def _train_batch(self, step: int) -> MicroBatch:
        shares = self._order.shares(step, self._world)
        return make_train_batch(self._source, self._order, self._geometry, step, shares)

    def _valid_batch(self, first: int) -> MicroBatch:
        order = self._order
        share = self._world.share(min(order.batch_size, order.valid_examples - first))
        return make_valid_batch(self._source, order, self._geometry, first, share)


def in_order(make: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield `make(item)` for each item, computed ahead by threads; its exception is raised at that item's turn.

    At most two results a thread wait to be taken.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="raymat-feed")
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(make, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Feed(Protocol):
    """Source of this worker's share of the run's batches."""

    def expect(self, stretches: Iterable[Stretch]) -> None:
        """Take note of what will be asked for, in this order: it may be made ahead. Replaces what was expected before.

        A hint, and lazily read: other calls, and others in between, are answered all the same. Must return at once.
        """

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        """Yield this worker's share (perhaps empty) of the steps first_step..end_step-1, in order."""

    def valid(self) -> Iterator[MicroBatch]:
        """Yield this worker's share of the validation examples, in batches."""
