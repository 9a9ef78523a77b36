"""The feed without Ray hands out the very batches of the order, from any step on."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from raymat.config.values import Range
from raymat.data.batch import Geometry
from raymat.data.batch_maker import make_train_batch
from raymat.data.decode import OpenImage
from raymat.data.feed import LocalFeed
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World
from raymat.errors import DataError
from tests.support.datakit import MemorySource

SOURCE = MemorySource(pairs=9, valid_pairs=5)
ORDER = SampleOrder(
    seed=3,
    pairs=9,
    backgrounds=9,
    batch_size=4,
    crop=Range(16, 32),
    total_examples=22,
    valid_pairs=5,
    valid_backgrounds=5,
    valid_examples=5,
)
GEOMETRY = Geometry("base", 32)


@pytest.mark.parametrize("threads", [1, 3])
def test_steps_come_in_order_from_any_step_on(threads: int) -> None:
    feed = LocalFeed(SOURCE, ORDER, GEOMETRY, threads=threads)
    batches = list(feed.train(2, 6))
    assert [batch.step for batch in batches] == [2, 3, 4, 5]
    assert [n for batch in batches for n in batch.numbers] == list(range(8, 22))
    for batch in batches:
        numbers = ORDER.step_numbers(batch.step)
        expected = make_train_batch(SOURCE, ORDER, GEOMETRY, batch.step, range(len(numbers)))
        assert np.array_equal(batch.fgr, expected.fgr)
        assert batch.examples == expected.examples


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_shares_of_all_workers_are_the_run_and_the_validation_set(size: int) -> None:
    feeds = [LocalFeed(SOURCE, ORDER, GEOMETRY, World(rank, size)) for rank in range(size)]
    steps = zip(*(feed.train(0, 6) for feed in feeds), strict=True)
    assert [n for step in steps for batch in step for n in batch.numbers] == list(range(22))
    valid = list(zip(*(feed.valid() for feed in feeds), strict=True))
    assert [n for step in valid for batch in step for n in batch.numbers] == list(range(5))
    assert [{batch.step for batch in step} for step in valid] == [{0}, {1}]


def test_a_feed_that_is_left_early_stops_its_threads() -> None:
    feed = LocalFeed(SOURCE, ORDER, GEOMETRY, threads=2)
    batches = feed.train(0, 6)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("raymat-feed")]


def test_an_error_is_raised_at_its_own_step() -> None:
    broken = ORDER.examples([6])[0].pair

    class Failing(MemorySource):
        def open_pair(self, index: int, valid: bool = False) -> tuple[OpenImage, OpenImage]:
            if index == broken:
                raise DataError("the storage is gone")
            return super().open_pair(index, valid)

    batches = LocalFeed(Failing(9, 5), ORDER, GEOMETRY, threads=3).train(0, 6)
    assert next(batches).step == 0, "numbers 0 to 3"
    with pytest.raises(DataError, match="the storage is gone"):
        next(batches)
