"""Lengths in examples, and random histories of a run: whatever comes later, no step that was trained changes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from raymat.config.run import RunConfig, build, to_dict
from raymat.config.values import Range
from raymat.data.lineage import NO_LINEAGE, DatasetSpan, Lineage
from raymat.data.sample_order import Cursor, Example, SampleOrder
from raymat.train.run.extension import (
    RunPosition,
    longer,
    position_of,
    total_examples,
    with_more_data,
)
from raymat.train.run.schedule import Schedule


def config(**options: Any) -> RunConfig:
    intervals = {"checkpoint_interval": 5000, "valid_interval": 5000, "log_images_interval": 2000}
    return build("base", {"name": "r", "synthetic": 8} | intervals | options)


def test_a_length_is_a_number_of_examples_whatever_the_batch_and_the_dataset() -> None:
    long = {"epochs": 14.3, "epoch_examples": 1_000_000}
    for batch in (4, 8):
        for pairs in (10, 240_000):
            assert total_examples(config(batch_size=batch, **long), pairs) == 14_300_000
    assert total_examples(config(epochs=2.5), 10) == 25
    assert total_examples(config(epochs=0.001), 10) == 1
    assert total_examples(config(steps=7, batch_size=4), 10) == 28


@pytest.mark.parametrize("batch", [3, 4, 8])
def test_epochs_end_and_the_run_stops_at_the_same_examples_with_any_batch(batch: int) -> None:
    asked = config(batch_size=batch, epochs=2.5, epoch_examples=24, valid_examples=0)
    total = total_examples(asked, 100)
    order = SampleOrder(0, 100, 9, batch, Range(256, 512), total)
    schedule = Schedule.of(asked, order)
    ends = [schedule.examples(s) for s in range(1, schedule.total_steps + 1) if schedule.ends_epoch(s)]  # fmt: skip
    assert ends == [24, 48]
    assert (schedule.examples(schedule.total_steps), schedule.epoch(schedule.total_steps)) == (60, 2.5)  # fmt: skip


def test_where_a_run_had_ended_it_logs_validates_and_commits_as_at_its_end() -> None:
    asked = config(batch_size=4, steps=9, valid_interval=100, checkpoint_interval=100)
    lineage = Lineage(ends=(14,))
    order = SampleOrder(0, 100, 9, 4, Range(256, 512), total_examples(asked, 10, lineage), 5, 5, 5, lineage)  # fmt: skip
    schedule = Schedule.of(asked, order)
    for due in (schedule.validates, schedule.commits, schedule.stops):
        assert [step for step in range(1, 10) if due(step)] == [4, 9]
    assert [step for step in range(1, 12) if schedule.logs(step)] == [4, 9, 10]
    assert [schedule.segment_end(step) for step in (0, 3, 4, 8)] == [4, 4, 9, 9]


def test_only_a_run_that_had_ended_starts_a_new_batch_where_it_is() -> None:
    at = RunPosition(step=4, examples=14, ended=True)
    further = config(epochs=3, epoch_examples=10)
    assert longer(further, 10, NO_LINEAGE, at) == Lineage(ends=(14,))
    assert longer(further, 10, NO_LINEAGE, replace(at, ended=False)) == NO_LINEAGE
    assert longer(further, 10, Lineage(ends=(14,)), at) == Lineage(ends=(14,))
    assert longer(config(epochs=1, epoch_examples=10), 10, NO_LINEAGE, at) == NO_LINEAGE
    assert longer(config(steps=4, batch_size=4), 10, NO_LINEAGE, at) == NO_LINEAGE
    assert longer(config(steps=5, batch_size=4), 10, NO_LINEAGE, at) == Lineage(ends=(14,))


def test_new_data_begins_with_the_next_pass() -> None:
    before = (10, 7, "old")
    for used, start in ((0, 0), (1, 10), (10, 10), (11, 20)):
        grown = with_more_data(NO_LINEAGE, before, RunPosition(used, used), valid_changed=False)
        assert grown == Lineage(spans=(DatasetSpan(start, 10, 7, "old"),))
    again = with_more_data(grown, (12, 7, "new"), RunPosition(15, 15), valid_changed=True)
    assert again == Lineage(
        spans=(DatasetSpan(20, 10, 7, "old"), DatasetSpan(20, 12, 7, "new")), valid_since=15
    )
    later = with_more_data(again, (20, 7, "newer"), RunPosition(9, 41), valid_changed=False)
    assert (later.start, later.valid_since) == (60, 15)


def test_a_state_says_where_it_stands_and_whether_its_run_ended_there() -> None:
    asked = config(epochs=2, epoch_examples=7, batch_size=4)
    extra = {"format": 1, "step": 4, "cursor": Cursor(14).state_dict(), "config": to_dict(asked)}
    assert position_of(extra, 10) == RunPosition(4, 14, ended=True)
    longer_run = extra | {"config": to_dict(config(epochs=3, epoch_examples=7, batch_size=4))}
    assert position_of(longer_run, 10) == RunPosition(4, 14, ended=False)
    steps = extra | {"config": to_dict(config(steps=4, batch_size=4)), "past": Lineage(ends=(14,)).to_dict()}  # fmt: skip
    assert position_of(steps, 10).ended


@dataclass
class Life:
    """A run that is trained, killed, extended and given more data at random; what it used, by step."""

    draws: random.Random
    pairs: int = 5
    lineage: Lineage = NO_LINEAGE
    total: int = 30
    at: RunPosition = field(default_factory=RunPosition)
    steps: list[list[Example]] = field(default_factory=list)

    @property
    def order(self) -> SampleOrder:
        return SampleOrder(
            1, self.pairs, self.pairs, 4, Range(4, 8), self.total, lineage=self.lineage
        )

    @property
    def asked(self) -> RunConfig:
        return config(epochs=1, epoch_examples=self.total, batch_size=4)

    def train(self) -> None:
        """Some steps further, as a rule to the end; each is what it was if it comes for the second time."""
        order = self.order
        if self.draws.random() < 0.5:
            last = order.total_steps
        else:
            last = self.draws.randint(self.at.step, order.total_steps)
        for step in range(self.at.step, last):
            examples = order.examples(order.step_numbers(step))
            if step < len(self.steps):
                assert self.steps[step] == examples, f"step {step} is another than it was"
            else:
                self.steps.append(examples)
        self.stand(max(last, self.at.step))

    def stand(self, step: int) -> None:
        used = sum(map(len, self.steps[:step]))
        self.at = RunPosition(step, used, used >= self.total)

    def lose(self) -> None:
        """The newest checkpoints are damaged."""
        self.stand(self.draws.randint(0, self.at.step))

    def extend(self) -> None:
        self.total = max(self.total, self.at.examples) + self.draws.randint(1, 40)
        self.decide(longer(self.asked, 5, self.lineage, self.at))

    def decide(self, lineage: Lineage) -> None:
        """Go on by another lineage: each step that the newest checkpoint has behind it stays as it was."""
        self.lineage = lineage
        order, same = self.order, 0
        while same < len(self.steps) and self.steps[same] == order.examples(
            order.step_numbers(same)
        ):
            same += 1
        assert same >= self.at.step
        self.steps = self.steps[:same]

    def grow(self) -> None:
        before = (self.pairs, self.pairs, str(self.pairs))
        self.pairs += self.draws.randint(1, 6)
        self.decide(with_more_data(self.lineage, before, self.at, valid_changed=False))


@pytest.mark.parametrize("seed", range(60))
def test_no_history_changes_a_step_that_was_trained_or_skips_an_example(seed: int) -> None:
    draws = random.Random(seed)
    life = Life(draws)
    for _ in range(12):
        draws.choice([life.train, life.train, life.extend, life.grow, life.lose])()
    life.extend()
    life.at = RunPosition()
    life.train()
    numbers = [example.number for step in life.steps for example in step]
    assert numbers == list(range(len(numbers)))
