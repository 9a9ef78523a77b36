"""Laws of the columns that say how fast a run is: what they hold, what they cost, and that nothing else depends on them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch
from raymat.distributed.world import World
from raymat.train.loop.interfaces import Host
from raymat.train.observability.logger import MEASURED
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.observability.progress import StepClock
from raymat.train.observability.tensorboard_log import TensorBoardLog
from tests.support import runs
from tests.support.paths import ROOT
from tests.support.workers import in_workers


class _Clock:
    """A clock that is set by hand and counts who looks."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


def step(clock: _Clock, steps: StepClock, waits: float, works: float) -> None:
    steps.batch_awaited()
    clock.now += waits
    steps.batch_arrived()
    clock.now += works
    steps.step_ended(4)


def test_the_clock_tells_waiting_from_working_and_starts_anew_with_each_row() -> None:
    clock = _Clock()
    steps = StepClock(clock)
    step(clock, steps, 1.0, 2.0)
    clock.now += 100.0  # a validation, between two steps
    step(clock, steps, 0.5, 2.0)
    clock.now += 0.5  # until the loss is known
    assert steps.read() == ({"step_seconds": 3.0, "examples_per_second": 8 / 6}, 0.25)
    step(clock, steps, 0.0, 1.0)
    assert steps.read() == ({"step_seconds": 1.0, "examples_per_second": 4.0}, 0.0)
    assert steps.read() == ({"step_seconds": 0.0, "examples_per_second": 0.0}, 0.0)


def test_the_clock_is_read_three_times_a_step_and_once_a_row() -> None:
    """A reading takes 50 ns: of a step of 10 ms that is a 60,000th."""
    clock = _Clock()
    steps = StepClock(clock)
    before = clock.looks
    for _ in range(10):
        step(clock, steps, 1.0, 1.0)
    steps.read()
    assert clock.looks - before == 31


class SlowFeed(runs.Feed):
    """A feed that makes rank `slow` wait 0.2 s for each batch."""

    def __init__(self, config: RunConfig, world: World, slow: int) -> None:
        super().__init__(config, world, {})
        self._pause = 0.2 if world.rank == slow else 0.0

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in super().train(first_step, end_step):
            time.sleep(self._pause)
            yield batch


def train_slowly(world: World, config: RunConfig) -> None:
    runs.train(world, config, feed=SlowFeed(config, world, slow=1))


def training_rows(config: RunConfig) -> list[dict[str, Any]]:
    return [row for row in read_metrics(runs.store_of(config)) if row["kind"] == "train"]


@pytest.mark.slow
def test_a_row_says_how_long_the_worker_that_starves_waits(tmp_path: Path) -> None:
    config = runs.tiny(tmp_path, "slow", steps=4, log_loss_interval=2, valid_examples=0)
    in_workers(2, train_slowly, config)
    rows = training_rows(config)
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert row["step_seconds"] >= 0.2
        assert 0.2 / row["step_seconds"] * 0.9 < row["data_wait"] <= 1
        assert row["examples_per_second"] == pytest.approx(4 / row["step_seconds"])
        assert 1e8 < row["memory"] < 1e11


def test_the_board_shows_what_the_rows_say_under_the_documented_tags(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = runs.tiny(tmp_path, "run", steps=2, valid_interval=2)
    runs.train(World(), config)
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    rows = training_rows(config)
    assert MEASURED[-1] == "goodput"  # the host's, and this one has none: tests/cluster/monitoring
    for column in MEASURED[1:-1]:
        values = [event.value for event in shown.Scalars(f"speed/{column}")]
        assert values == pytest.approx([row[column] for row in rows], rel=1e-6)
    tags = {re.sub(r"^(lr/|valid_)(?!loss).+", r"\1NAME", t) for t in shown.Tags()["scalars"]}
    documented = (ROOT / "docs/curves.md").read_text("utf-8")
    for tag in tags | set(shown.Tags()["images"]):
        assert f"`{tag}`" in documented


class Reckoning(Host):
    """A host that has been told the run's goodput."""

    def goodput(self) -> float | None:
        return 0.97125


def test_goodput_that_the_host_knows_is_a_column_and_a_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = runs.tiny(tmp_path, "run", steps=2, valid_examples=0)
    runs.train(World(), config, host=Reckoning())
    assert [row["goodput"] for row in training_rows(config)] == [0.9712, 0.9712]
    shown = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in shown.Scalars("goodput")]
    assert found == [(1, pytest.approx(0.9712)), (2, pytest.approx(0.9712))]


def test_a_row_of_an_older_version_is_shown_without_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(runs.store_of(runs.tiny(tmp_path, "old")), 1)
    log.row({"kind": "train", "step": 1, "time": 1e9, "loss": 0.5, "epoch": 0.1, "lr": {}})
    log.cut(1)
    log.flush(1)
    shown = EventAccumulator(str(tmp_path / "old" / "tensorboard")).Reload()
    assert sorted(shown.Tags()["scalars"]) == ["epoch", "loss"]
