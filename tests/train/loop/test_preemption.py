"""What a notice leads to: the last commit before machines go, at the same step on all workers."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymat.config.run import RunConfig
from raymat.distributed.world import World
from raymat.train.loop import preemption
from raymat.train.loop.interfaces import Host
from raymat.train.loop.trainer import Outcome
from raymat.train.observability.events import read_events
from raymat.train.run.notice import (
    Action,
    HeardNotice,
    Hearing,
    LeavingError,
    Notice,
    action_on,
    merge,
)
from tests.support import runs
from tests.support.workers import in_workers

COMMIT, TRAIN, LEAVE = Action.COMMIT, Action.TRAIN, Action.LEAVE


@pytest.mark.parametrize(
    ("left", "save", "step", "since", "action"),
    [
        (120.0, 2.0, 0.1, None, COMMIT),
        (120.0, 2.0, 0.1, 1.0, TRAIN),
        (120.0, 2.0, 0.1, 4.0, COMMIT),
        # 2 x 2 s for a save twice as slow, two steps, and 2 s to be gone: 6.2 s before the deadline.
        (6.3, 2.0, 0.1, 1.0, TRAIN),
        (6.1, 2.0, 0.1, 1.0, LEAVE),
        (6.1, 2.0, 0.1, None, LEAVE),
        (20.0, 2.0, 8.0, None, LEAVE),
        (-5.0, 2.0, 0.1, 0.0, LEAVE),
        # A save that nobody measured yet is taken to last 10 s.
        (21.0, None, 0.1, None, LEAVE),
        (23.0, None, 0.1, None, COMMIT),
    ],
)
def test_what_follows_from_a_deadline(
    left: float, save: float | None, step: float, since: float | None, action: Action
) -> None:
    notice = HeardNotice("x", left=left)
    found = action_on(notice, save_seconds=save, step_seconds=step, since_save=since)
    assert found is action


def test_without_a_deadline_the_workers_leave_when_no_more_notices_come() -> None:
    for age, action in ((0.0, TRAIN), (1.9, TRAIN), (2.0, LEAVE)):
        notice = HeardNotice("x", age=age)
        found = action_on(notice, save_seconds=1.0, step_seconds=0.1, since_save=None)
        assert found is action


def test_several_notices_are_one_with_the_earliest_deadline() -> None:
    assert merge([None, None]) is None
    # By the clock of whoever heard it, "a" ends later: what counts is the time that is left.
    found = merge(
        [
            HeardNotice("b", age=5.0),
            None,
            HeardNotice("a", 900.0, age=7.0, left=20.0),
            HeardNotice("b", 60.0, age=6.0, left=30.0),
        ]
    )
    assert found == HeardNotice("a; b", 900.0, age=5.0, left=20.0)
    final = HeardNotice("c", final=True, age=9.0)
    assert merge([final, found]) == HeardNotice("a; b; c", 900.0, True, age=5.0, left=20.0)


def test_who_is_not_to_be_started_again_leaves_at_once() -> None:
    for left in (None, 100.0):
        notice = HeardNotice("x", final=True, left=left)
        found = action_on(notice, save_seconds=1.0, step_seconds=0.1, since_save=None)
        assert found is LEAVE


def test_that_leaving_is_final_is_known_on_the_other_side_of_a_pickle() -> None:
    for final in (True, False):
        error = pickle.loads(pickle.dumps(LeavingError("stopped", final=final)))
        assert (error.line, error.final) == ("stopped", final)


class Warned(Host):
    """A host of one rank that hears of a drain from the first-th question on, and no more from the end-th on.

    `seconds`: from hearing to the deadline; None: there is none. A step asks once, and once more when something was
    heard; each batch of validation asks once.
    """

    def __init__(self, first: int, end: int = 10**9, seconds: float | None = 0.0) -> None:
        self._first, self._end, self._seconds = first, end, seconds
        self._asked = 0
        self._hearing: Hearing | None = None

    def notice(self) -> HeardNotice | None:
        self._asked += 1
        if not self._first <= self._asked < self._end:
            return None
        if self._hearing is None:
            # By the clock of the cloud, which is right.
            deadline = (
                None
                if self._seconds is None
                else time.clock_gettime(time.CLOCK_REALTIME) + self._seconds
            )
            self._hearing = Hearing(Notice("node x is drained", deadline))
        found = self._hearing.now()
        return replace(found, age=found.age + 10)


def train_warned(world: World, config: RunConfig, rank: int, *warning: Any, **more: Any) -> Outcome:
    host = Warned(*warning) if world.rank == rank else Host()
    return runs.train(world, config, host=host)


def events(config: RunConfig, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(runs.store_of(config)) if event["kind"] == kind]


def leave_and_go_on(tmp_path: Path, rank: int, first: int, **options: Any) -> RunConfig:
    """A run of two workers that leaves by a notice to `rank` and is started again; equal to one that heard nothing."""
    undisturbed = runs.tiny(tmp_path, "undisturbed", **options)
    in_workers(2, runs.train, undisturbed)
    config = runs.tiny(tmp_path, "warned", **options)
    for error in in_workers(2, train_warned, config, rank, first, 10**9, None):
        assert isinstance(error, LeavingError)
        assert "node x is drained" in error.line
    in_workers(2, runs.train, config)
    ours, theirs = runs.checkpoints(config)[8], runs.checkpoints(undisturbed)[8]
    assert runs.differences(ours, theirs) == []
    return config


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.chaos)])
def test_all_leave_after_the_step_in_which_one_heard_and_nothing_is_lost(
    tmp_path: Path, rank: int
) -> None:
    # Each step asks once, so rank hears in the third step; checkpoints would come every 8.
    config = leave_and_go_on(tmp_path, rank, 3, checkpoint_interval=8, valid_examples=0)
    (leave,) = events(config, "leave")
    assert (leave["step"], leave["committed"]) == (3, 3)
    (restored,) = events(config, "restore")
    assert restored["step"] == 3
    assert [e["outcome"] for e in events(config, "end")] == ["left", "left", "complete"]
    (notice,) = events(config, "notice")
    assert (notice["reason"], notice["deadline"], notice["step"]) == ("node x is drained", None, 3)


@pytest.mark.slow
def test_a_validation_that_a_notice_breaks_off_is_made_up_for(tmp_path: Path) -> None:
    # Four steps ask, then the one batch of validation: the fifth question.
    config = leave_and_go_on(tmp_path, 1, 5, checkpoint_interval=8, valid_interval=4)
    (leave,) = events(config, "leave")
    assert (leave["step"], leave["committed"]) == (4, 4)
    assert [e["step"] for e in events(config, "validation")] == [0, 4, 8]


@pytest.mark.slow
def test_a_withdrawn_notice_changes_nothing(tmp_path: Path) -> None:
    config = runs.tiny(tmp_path, "withdrawn", checkpoint_interval=8, valid_examples=0)
    outcomes = in_workers(2, train_warned, config, 1, 3, 7, 1000.0)
    assert [outcome.step for outcome in outcomes] == [8, 8]
    assert [e["step"] for e in events(config, "notice")] == [3]
    assert [e["step"] for e in events(config, "notice_withdrawn")] == [5]
    # It was committed at once, since nobody knew that it would be withdrawn.
    assert 3 in runs.checkpoints(config)
    assert not events(config, "leave")


@pytest.mark.slow
def test_when_no_time_is_left_the_newest_commit_stands_and_the_event_says_so(
    tmp_path: Path,
) -> None:
    config = runs.tiny(tmp_path, "late", checkpoint_interval=2, valid_examples=0)
    (error, _) = in_workers(2, train_hurried, config)
    assert isinstance(error, LeavingError)
    (leave,) = events(config, "leave")
    assert leave["step"] == 5
    assert leave["committed"] in (2, 4)
    assert f"step {leave['committed']} is committed" in error.line


def train_hurried(world: World, config: RunConfig) -> Outcome:
    """As if clocks were never wrong: with a deadline that is past, nothing is waited for."""
    preemption.LEAST_WAIT_SECONDS = -1.0
    return train_warned(world, config, 0, 5, 10**9, -1.0)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [-300.0, 300.0])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_wrong_clock_makes_nobody_leave_uncommitted(
    tmp_path: Path, rank: int, wrong: float
) -> None:
    # Rank 0 hears in the third step that 15 s are left; checkpoints would come every 8.
    config = runs.tiny(tmp_path, "clocks", checkpoint_interval=8, valid_examples=0)
    found = in_workers(2, train_with_a_wrong_clock, config, rank, wrong)
    behind = rank == 0 and wrong < 0
    if behind:  # it takes the deadline for far away: all is saved at once, and training goes on
        assert [outcome.step for outcome in found] == [8, 8]
        assert 3 in runs.checkpoints(config)
        return
    assert all(isinstance(error, LeavingError) for error in found)
    (leave,) = events(config, "leave")
    assert (leave["step"], leave["committed"]) == (3, 3)


def train_with_a_wrong_clock(world: World, config: RunConfig, rank: int, wrong: float) -> Outcome:
    """`rank`'s machine has a clock that is ahead by `wrong` seconds."""
    if world.rank == rank:
        right = time.time
        time.time = lambda: right() + wrong
    return train_warned(world, config, 0, 3, 10**9, 15.0)
