"""Batches that a thread makes ready are those that training would have made, in their order, whatever happens."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.data.batch import MicroBatch
from raymat.data.composite import Composed
from raymat.distributed.world import World
from raymat.errors import DataError
from raymat.train.loop import steps
from raymat.train.loop.ready_batches import Lane, ReadyBatch, ready_batches
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.optim.forward import ForwardPass
from tests.support import runs

CONFIG = runs.tiny("memory://", "ready", accumulate=2)
FORWARD = ForwardPass(
    stage="base", precision="fp32", seed=0, resolution=32, device=torch.device("cpu")
)


def made_of(batches: Iterator[MicroBatch], compose: Any = FORWARD.compose) -> Iterator[ReadyBatch]:
    return ready_batches(batches, compose, Lane())


def feed() -> Iterator[MicroBatch]:
    return runs.Feed(CONFIG, World(), {}).train(0, 4)


def test_a_thread_makes_what_training_would_make_in_the_same_order() -> None:
    found, makers = [], set()

    def compose(batch: MicroBatch) -> Composed:
        makers.add(threading.current_thread().name)
        return FORWARD.compose(batch)

    for ready, plain in zip(made_of(feed(), compose), feed(), strict=True):
        assert ready.pictures is not None
        assert ready.batch.numbers == plain.numbers
        parts = plain.by_chunk()
        assert len(ready.pictures) == len(parts) == 2
        for pictures, part in zip(ready.pictures, parts, strict=True):
            pairs = zip(pictures, FORWARD.compose(part), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        found.append(ready.batch.step)
    assert found == [0, 1, 2, 3]
    assert makers == {"raymat-ready_0"}


def test_one_batch_at_most_waits_while_another_is_trained_on() -> None:
    asked: list[int] = []
    came: dict[int, threading.Event] = {n: threading.Event() for n in range(4)}

    def watched() -> Iterator[MicroBatch]:
        for batch in feed():
            asked.append(batch.step)
            came[batch.step].set()
            yield batch

    made = made_of(watched())
    assert next(made).batch.step == 0
    assert came[1].wait(10)  # made ready while the first is trained on
    assert not came[2].wait(0.2)
    assert asked == [0, 1]
    assert [ready.batch.step for ready in made] == [1, 2, 3]


def test_leaving_in_the_middle_closes_the_feed_and_ends_the_thread() -> None:
    closed = threading.Event()

    def watched() -> Iterator[MicroBatch]:
        try:
            yield from feed()
        finally:
            closed.set()

    made: Any = made_of(watched())
    next(made)
    made.close()
    assert closed.wait(10)


def broken_feed() -> Iterator[MicroBatch]:
    batches = feed()
    yield next(batches)
    raise DataError("the storage is gone")


def broken_compose() -> Callable[[MicroBatch], Composed]:
    def compose_or_fail(batch: MicroBatch) -> Composed:
        if batch.step == 1:
            raise ValueError("out of memory")
        return FORWARD.compose(batch)

    return compose_or_fail


@pytest.mark.parametrize(
    ("batches", "compose", "error", "place"),
    [
        (broken_feed, lambda: FORWARD.compose, DataError, "broken_feed"),
        (feed, broken_compose, ValueError, "compose_or_fail"),
    ],
)
def test_an_error_comes_at_its_batchs_turn_with_its_own_trace(
    batches: Any, compose: Any, error: type[Exception], place: str
) -> None:
    made = made_of(batches(), compose())
    assert next(made).batch.step == 0
    with pytest.raises(error) as raised:
        next(made)
    assert place in {frame.name for frame in traceback.extract_tb(raised.value.__traceback__)}


def test_a_run_whose_batches_are_made_beside_has_the_weights_and_rows_of_one_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With validations in between, saves, and chunks: equal to the bit."""
    plain, beside = (runs.tiny(tmp_path, name, accumulate=2) for name in ("plain", "beside"))
    runs.train(World(), plain)
    lanes: list[Any] = []
    monkeypatch.setattr(steps, "lane_of", lambda device: lanes.append(device) or Lane())
    runs.train(World(), beside)
    assert lanes == [torch.device("cpu")]
    one, other = runs.checkpoints(plain), runs.checkpoints(beside)
    # A slow storage has the saves of a step between joined to the next: of the last one there always is a checkpoint.
    both = sorted(one.keys() & other.keys())
    assert both[-1:] == [8]
    for step in both:
        assert runs.differences(one[step], other[step]) == []
    rows = [
        [(row["step"], row["kind"], row["loss"]) for row in read_metrics(runs.store_of(config))]
        for config in (plain, beside)
    ]
    assert rows[0] == rows[1]


def test_a_run_that_fails_in_the_thread_ends_with_that_error_and_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "lane_of", lambda device: Lane())
    plain, failing = runs.tiny(tmp_path, "plain"), runs.tiny(tmp_path, "failing")
    runs.train(World(), plain)

    class Broken(runs.Feed):
        def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
            for batch in super().train(first_step, end_step):
                if batch.step == 5:
                    raise DataError("the storage is gone")
                yield batch

    with pytest.raises(DataError, match="the storage is gone"):
        runs.train(World(), failing, feed=Broken(failing, World(), {}, patient=True))
    assert runs.train(World(), failing).step == 8
    one, other = runs.checkpoints(plain)[8], runs.checkpoints(failing)[8]
    assert runs.differences(one, other) == []
