"""Laws of learning rates and of early stopping: hand-computed values, and runs that are really killed in the middle of each."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raymat.config.fixed_options import promise_changes
from raymat.config.run import RunConfig, build, from_dict, to_dict
from raymat.data.lineage import DatasetSpan, Lineage
from raymat.distributed.world import World
from raymat.errors import CheckpointError, ConfigError
from raymat.train.loop import startup
from raymat.train.loop.interfaces import Host
from raymat.train.loop.state import RunState
from raymat.train.loop.trainer import Outcome
from raymat.train.observability.event import Event
from raymat.train.observability.events import read_events
from raymat.train.observability.logger import MEASURED
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.optim.lr_schedule import RateState, fix_cosine_end, rates
from raymat.train.validation.criteria import (
    Trend,
    Validation,
    follow,
    plateau_reductions,
    stop_reason,
)
from tests.support import runs
from tests.support.small import build_small
from tests.support.workers import WorkerError, in_workers


def of(**options: Any) -> RunConfig:
    """Rates of 0.5 everywhere, so that what is multiplied shows."""
    full = {"lr_backbone": 0.5, "lr_aspp": 0.5, "lr_decoder": 0.5}
    return runs.tiny("x", "y", **(full | options))


def curve(config: RunConfig, places: list[int], state: RateState | None = None) -> list[float]:
    """The backbone's rate as a fraction of its full one."""
    return [rates(config, place, state)["backbone"] / 0.5 for place in places]


# The rates.


def test_a_constant_rate_is_the_configured_one_to_the_bit() -> None:
    config = runs.tiny("x", "y", "refine", lr_aspp=0.25)
    for place in (0, 1, 10**9):
        assert rates(config, place) == {
            "backbone": 5e-5, "aspp": 0.25, "decoder": 1e-4, "refiner": 3e-4,
        }  # fmt: skip


def test_a_warm_up_rises_in_a_straight_line_from_zero_with_any_schedule() -> None:
    places = [0, 1, 50, 100, 101, 10**6]
    assert curve(of(warmup_examples=100), places) == [0, 0.01, 0.5, 1, 1, 1]
    step = of(warmup_examples=100, schedule="step", step_examples=60, step_factor=0.5)
    assert curve(step, [30, 59, 60, 100, 120]) == [0.3, 0.59, 0.3, 0.5, 0.25]


def test_a_cosine_falls_from_the_warm_ups_end_to_its_floor_and_stays() -> None:
    config = of(schedule="cosine", warmup_examples=100, schedule_examples=500)
    state = fix_cosine_end(config, 500, RateState())
    # A third of the way the cosine of 60 degrees is 1/2, half of the way it is 0.
    assert curve(config, [50, 100, 300, 500, 900], state) == pytest.approx(
        [0.5, 1, 0.5, 0, 0], abs=1e-15
    )
    assert curve(config, [100 + 400 / 3], state) == pytest.approx([0.75])
    config = of(schedule="cosine", schedule_examples=400, schedule_floor=0.2)
    state = fix_cosine_end(config, 10**6, RateState())
    assert curve(config, [0, 200, 400, 10**6], state) == pytest.approx([1, 0.6, 0.2, 0.2])


def test_a_step_lowers_the_rate_again_and_again() -> None:
    config = of(schedule="step", step_examples=100, step_factor=0.5)
    assert curve(config, [0, 99, 100, 199, 200, 300]) == [1, 1, 0.5, 0.5, 0.25, 0.125]


def test_a_plateau_lowers_the_rate_as_often_as_it_was_seen_down_to_the_floor() -> None:
    config = of(schedule="plateau", plateau_patience=1, plateau_factor=0.5, schedule_floor=0.2)
    found = [curve(config, [7], RateState(reductions=n))[0] for n in range(5)]
    assert found == [1, 0.5, 0.25, 0.2, 0.2]


def test_each_part_may_have_a_schedule_of_its_own() -> None:
    config = of(
        schedule="step", step_examples=10, step_factor=0.5, schedule_backbone="constant", schedule_decoder="plateau",
        plateau_patience=1, plateau_factor=0.25, lr_backbone=0.125,
    )  # fmt: skip
    assert rates(config, 20, RateState(reductions=1)) == {
        "backbone": 0.125,
        "aspp": 0.125,
        "decoder": 0.125,
    }
    assert rates(config, 0) == {"backbone": 0.125, "aspp": 0.5, "decoder": 0.5}


def test_a_cosine_without_a_length_of_its_own_ends_with_the_run_as_it_was_begun() -> None:
    config = of(schedule="cosine", schedule_floor=0.5)
    begun = fix_cosine_end(config, 800, RateState())
    assert begun.cosine_examples == 800
    longer = fix_cosine_end(config, 1600, begun)
    assert longer == RateState.load_state_dict(begun.state_dict()) == begun
    assert curve(config, [400, 1200], longer) == pytest.approx([0.75, 0.5])


def test_a_run_that_would_go_on_with_rates_of_zero_is_refused() -> None:
    config = of(schedule="cosine")
    begun = fix_cosine_end(config, 800, RateState())
    with pytest.raises(
        ConfigError, match=r"0 from 800 examples on.* has 1600.*--schedule-examples 1600"
    ):
        fix_cosine_end(config, 1600, begun)
    partly = of(schedule="cosine", schedule_aspp="constant")
    assert fix_cosine_end(partly, 1600, begun) == begun
    with pytest.raises(ConfigError, match="ends after 800 examples, its warm-up only after 800"):
        fix_cosine_end(of(schedule="cosine", warmup_examples=800), 800, RateState())


def test_a_state_from_before_there_were_schedules_is_read_and_one_from_later_refused() -> None:
    assert RateState.load_state_dict({"format": 1, "kind": "constant"}) == RateState()
    with pytest.raises(CheckpointError, match="schedule of format 2, got 3"):
        RateState.load_state_dict({"format": 3})


# What validations decide.


def trend(values: list[float | None], **options: Any) -> Trend:
    """One value every 10 examples."""
    defaults: dict[str, Any] = {"mode": "min", "patience": 20, "min_delta": 0.0}
    points = [(10 * (i + 1), value) for i, value in enumerate(values)]
    return follow(points, **(defaults | options))


def test_patience_runs_out_so_many_examples_after_the_best_and_then_begins_anew() -> None:
    # Best at 20; 20 examples later nothing is better, and 20 after that.
    values: list[float | None] = [3, 2, 2, 2, 2, 2]
    assert [trend(values[:n]).expired for n in range(7)] == [0, 0, 0, 0, 1, 1, 2]
    assert trend(values) == Trend(best=2, best_at=20, waited=40, expired=2)
    assert trend([3, 2, 2, 1, 1, 1]) == Trend(best=1, best_at=40, waited=20, expired=1)


def test_what_is_better_may_be_more_and_must_be_by_more_than_the_minimum() -> None:
    values: list[float | None] = [1, 1.5, 2, 2.5, 3.25]
    assert trend(values).best_at == 10
    assert trend(values, mode="max").best_at == 50
    # 1.5 and 2 are not more than 1 better than 1; 2.5 is; 3.25 is not more than 1 better than 2.5.
    assert trend(values, mode="max", min_delta=1) == Trend(2.5, 40, 10, 1)


def test_what_is_not_finite_is_no_improvement_and_patience_waits_for_the_warm_up() -> None:
    assert trend([1, None, None]) == Trend(1, 10, 20, 1)
    assert trend([None, None]) == Trend(None, 0, 20, 1)
    assert [trend([1, 1, 1, 1, 1], begin=30).expired, trend([1] * 4, begin=30).expired] == [1, 0]


def validations(losses: list[float]) -> list[Validation]:
    """Every 2 steps of 4 examples."""
    return [Validation(2 * (i + 1), loss, {"sad": -loss}) for i, loss in enumerate(losses)]


def test_a_plateau_counts_only_validations_that_were_due_whatever_the_runs_length() -> None:
    config = of(schedule="plateau", plateau_patience=16, valid_interval=2)
    found = validations([1, 2, 2])
    assert plateau_reductions(config, found) == 1
    assert plateau_reductions(config, [*found[:2], Validation(5, 2)]) == 0
    assert plateau_reductions(of(plateau_patience=16, valid_interval=2), found) == 0


def test_reductions_stay_where_another_validation_set_displaces_what_was_found() -> None:
    config = of(schedule="plateau", plateau_patience=16, valid_interval=2)
    record = RunState(validations=validations([1, 2, 2]), rates=RateState(reductions=1))
    record.add_validation(Validation(8, 9.0), since=6)
    assert [v.step for v in record.validations] == [8]
    assert record.rates == RateState(reductions=1, reductions_before=1)
    assert RateState.load_state_dict(record.rates.state_dict()) == record.rates
    assert plateau_reductions(config, record.validations) == 0


def test_where_the_dataset_has_grown_patience_to_stop_begins_anew() -> None:
    config = of(early_stop_patience=16)
    found = validations([1, 2, 3])
    grown = Lineage(spans=(DatasetSpan(end=30, pairs=20, backgrounds=20, listing="x"),))
    assert stop_reason(config, found, grown) is None
    later = [*found, Validation(9, 2.0), Validation(12, 2.0)]
    assert stop_reason(config, later[:4], grown) is None
    # 18 examples after the new pairs began, at 48, nothing is better than 1; of a new validation set 2 is the best so far.
    assert stop_reason(config, later, grown) == "loss has not fallen for 18 examples (best 1 at 8)"
    assert stop_reason(config, later, replace(grown, valid_since=6)) is None
    # After an end with a smaller batch, of 2 examples, a step's examples are counted from there.
    ended = Lineage(ends=(10,))
    assert stop_reason(config, found, ended) is None
    assert stop_reason(config, [*found, Validation(8, 2.0)], ended) is not None


def test_a_run_stops_when_its_newest_validation_is_too_long_after_the_best() -> None:
    config = of(early_stop_patience=16)
    assert stop_reason(config, validations([1, 2])) is None
    assert stop_reason(config, validations([1, 2, 3])) == (
        "loss has not fallen for 16 examples (best 1 at 8)"
    )
    assert stop_reason(config, validations([1, 2, 3, 0.5])) is None
    assert stop_reason(of(early_stop_patience=24), validations([1, 2, 3])) is None
    assert stop_reason(of(), validations([1] * 99)) is None
    rising = of(
        early_stop_patience=16, early_stop_metric="sad", early_stop_mode="max", early_stop_min_delta=0.5
    )  # fmt: skip
    assert stop_reason(rising, validations([1, 0.75, 0.5])) == (
        "sad has not risen by more than 0.5 for 16 examples (best -1 at 8)"
    )
    assert stop_reason(rising, validations([1, 0.75, 0.25])) is None


# The configuration.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": "linear"}, "--schedule must be one of constant, cosine, step, plateau"),
        ({"schedule": "step"}, "--schedule step needs --step-examples N"),
        ({"schedule_aspp": "plateau"}, "--schedule plateau needs --plateau-patience N"),
        ({"warmup_examples": -1}, "--warmup-examples must not be negative"),
        ({"step_factor": 1.0}, "--step-factor must be between 0 and 1"),
        ({"schedule_floor": 1.0}, r"--schedule-floor must be in \[0, 1\)"),
        ({"early_stop_patience": -1}, "--early-stop-patience must not be negative"),
        (
            {"early_stop_patience": 1, "early_stop_metric": "grad"},
            "--early-stop-metric must be one of loss, mse, sad, got 'grad'",
        ),
        (
            {"schedule": "plateau", "plateau_patience": 1, "plateau_metric": "ema_loss"},
            "--plateau-metric must be one of",
        ),
        (
            {"early_stop_patience": 1, "valid_examples": 0},
            "--early-stop-patience needs validation: --valid-examples must not be 0",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_its_flag(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        of(**options)


def test_an_average_has_metrics_to_watch() -> None:
    config = of(ema_decay=0.9, early_stop_patience=1, early_stop_metric="ema_sad")
    assert config.length.early_stop_metric == "ema_sad"


def test_schedules_are_promised_and_early_stopping_is_not() -> None:
    plain, plateau = of(), of(schedule="plateau", plateau_patience=8)
    assert promise_changes(plain, of(warmup_examples=8)) == {"warmup_examples": (0, 8)}
    assert promise_changes(plain, of(early_stop_patience=8, valid_interval=1)) == {}
    # Where validations lower the rates, it matters when they are and what they see.
    other = of(schedule="plateau", plateau_patience=8, valid_interval=1)
    assert promise_changes(plateau, other) == {"valid_interval": (4, 1)}


def test_a_run_from_before_there_were_schedules_goes_on() -> None:
    new = to_dict(of())
    old = {
        name: value
        for name, value in new.items()
        if not name.startswith(("schedule", "plateau", "step_", "warmup", "early_stop", "best_"))
    }
    assert (
        promise_changes(
            from_dict(old), build("base", {k: v for k, v in new.items() if k != "stage"})
        )
        == {}
    )


# Runs.

STEPS = 12
EVENTFUL: dict[str, Any] = {
    "steps": STEPS, "valid_interval": 2, "checkpoint_interval": 3, "valid_examples": 2, "resolution": 16, "crop": 16,
    # 3.5 steps; validations after 2, 4, ... steps; the first is the best, since none differs by a million.
    "warmup_examples": 14, "schedule": "plateau", "schedule_aspp": "cosine",
    "plateau_patience": 8, "plateau_factor": 0.5, "plateau_min_delta": 1e6, "lr_backbone": 1e-3, "lr_decoder": 2e-3,
}  # fmt: skip
"""Of 4 examples a step: patience begins with the warm-up's end at 14 and runs out at 24 (step 6), 32 (8), 40 (10), 48."""


class Killer(Host):
    """Kills this process when an event of this kind and step is told."""

    def __init__(self, kind: str, step: int) -> None:
        self.where = (kind, step)

    def event(self, event: Event) -> None:
        if (event.kind, getattr(event, "step", None)) == self.where:
            os.kill(os.getpid(), signal.SIGKILL)


def train_small(
    world: World, config: RunConfig, kill: dict[int, int] | None = None, host: Any = None
) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(startup, "build", build_small)
        return runs.train(world, config, kill, patient=True, host=host)


def eventful(folder: Path, name: str, **options: Any) -> RunConfig:
    return runs.tiny(folder, name, **(EVENTFUL | options))


def lines(config: RunConfig) -> list[tuple[Any, ...]]:
    """All that a run's rows say, but what differs from one time to the next."""
    found = read_metrics(runs.store_of(config))
    return [tuple(v for k, v in sorted(row.items()) if k not in MEASURED) for row in found]


def ends(config: RunConfig) -> list[tuple[str, str]]:
    found = read_events(runs.store_of(config))
    return [(e["outcome"], e["reason"]) for e in found if e["kind"] == "end"]


def assert_same(one: RunConfig, other: RunConfig) -> None:
    a, b = runs.checkpoints(one), runs.checkpoints(other)
    assert list(a) == list(b)
    for step in a:
        assert runs.differences(a[step], b[step]) == [], step
    assert lines(one) == lines(other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = eventful(tmp_path_factory.mktemp("eventful"), "undisturbed")
    train_small(World(), config)
    return config


def test_a_run_follows_its_schedules(undisturbed: RunConfig) -> None:
    rows = [r for r in read_metrics(runs.store_of(undisturbed)) if r["kind"] == "train"]
    backbone = [row["lr"]["backbone"] / 1e-3 for row in rows]
    rise = [0, 4 / 14, 8 / 14, 12 / 14]
    assert backbone == pytest.approx([*rise, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125])
    last = rows[-1]["lr"]["aspp"] / rows[-1]["lr"]["decoder"]
    # The cosine is at (44 - 14) / (48 - 14) of its way; the decoder's rate was halved three times.
    assert last == pytest.approx(5e-4 * 0.033764 / (2e-3 * 0.125), rel=1e-4)
    states = runs.checkpoints(undisturbed)
    schedules = {step: state.extra["schedule"] for step, state in states.items()}
    assert schedules == {
        step: {"format": 2, "cosine_examples": 48, "reductions": reductions, "reductions_before": 0}
        for step, reductions in ((3, 0), (6, 1), (9, 2), (12, 4))
    }
    told = [e for e in read_events(runs.store_of(undisturbed)) if e["kind"] == "plateau"]
    assert [(e["step"], e["reductions"]) for e in told] == [(6, 1), (8, 2), (10, 3), (12, 4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "kill"),
    [
        # In its 3rd step nothing is committed, in its 4th the checkpoint of step 3: in the middle of the warm-up.
        ("warm-up", 3),
        # Patience has begun at 14 examples and runs out at 24.
        ("patience", 4),
        ("just before a reduction", 5),
        ("just after a reduction", 6),
        # Its reduction of step 8 was not committed: it comes again.
        ("after a reduction that was lost", 8),
    ],
)
def test_killed_in_the_middle_of_anything_it_resumes_to_the_bit(
    undisturbed: RunConfig, tmp_path: Path, where: str, kill: int
) -> None:
    config = eventful(tmp_path, "killed")
    with pytest.raises(WorkerError, match="died"):
        in_workers(1, train_small, config, {0: kill})
    outcome = train_small(World(), config)
    assert (outcome.step, outcome.attempt, outcome.stopped) == (STEPS, 2, None)
    assert_same(undisturbed, config)


STOPPING: dict[str, Any] = {
    "steps": STEPS, "valid_interval": 2, "checkpoint_interval": 3, "valid_examples": 2, "resolution": 16, "crop": 16,
    "early_stop_patience": 16, "early_stop_metric": "sad", "early_stop_min_delta": 1e6,
}  # fmt: skip
"""Best at step 2, after 8 examples; patience runs out at 24, step 6."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = runs.tiny(
        tmp_path_factory.mktemp("stopped"), "stopped", **(STOPPING | {"checkpoint_interval": 4})
    )
    outcome = train_small(World(), config)
    assert (outcome.step, outcome.already_complete) == (6, False)
    return config


def test_a_run_that_stops_early_commits_there_and_is_complete(stopped: RunConfig) -> None:
    states = runs.checkpoints(stopped)
    assert list(states) == [4, 6]
    reason = states[6].extra["stopped"]
    assert reason.startswith("sad has not fallen by more than 1e+06 for 16 examples (best ")
    assert states[4].extra["stopped"] is None
    assert ends(stopped)[0] == ("complete", f"stopped early: {reason}")
    outcome = train_small(World(), stopped)
    assert (outcome.step, outcome.already_complete, outcome.stopped) == (6, True, reason)
    assert list(runs.checkpoints(stopped)) == [4, 6]


@pytest.mark.parametrize(
    ("where", "kill", "host"),
    [
        ("in the middle of patience", {0: 5}, None),
        ("after the decision, before its commit", None, Killer("validation", 6)),
        ("after the commit", None, Killer("commit", 6)),
    ],
)
def test_a_kill_neither_forgets_the_decision_nor_repeats_it(
    stopped: RunConfig, tmp_path: Path, where: str, kill: Any, host: Any
) -> None:
    config = runs.tiny(tmp_path, "stopped", **(STOPPING | {"checkpoint_interval": 4}))
    with pytest.raises(WorkerError, match="died"):
        in_workers(1, train_small, config, kill, host)
    outcome = train_small(World(), config)
    assert (outcome.step, outcome.already_complete) == (6, where == "after the commit")
    assert_same(stopped, config)


def test_results_that_count_later_lower_rates_and_end_the_run_later_and_at_the_same_step_after_a_kill(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = STOPPING | {
        "validation": "auto", "schedule": "plateau", "plateau_patience": 8, "plateau_min_delta": 1e6,
    }  # fmt: skip
    whole, killed = (runs.tiny(tmp_path, name, **options) for name in ("whole", "killed"))
    outcome = train_small(World(), whole)
    # What step 4 found (8 examples after the best) counts at step 6; what step 6 found (16) at step 8, where the newest weights
    # are measured before the last word is spoken.
    assert (outcome.step, outcome.stopped is not None) == (8, True)
    rows = [r for r in read_metrics(runs.store_of(whole)) if r["kind"] == "train"]
    assert [row["lr"]["decoder"] / 5e-4 for row in rows] == pytest.approx([1] * 6 + [0.1] * 2)
    with pytest.raises(WorkerError, match="died"):
        in_workers(1, train_small, killed, None, Killer("validation", 6))
    assert train_small(World(), killed).step == 8
    assert_same(whole, killed)
    assert promise_changes(
        whole, runs.tiny(tmp_path, "x", **(options | {"validation": "loop"}))
    ) == {"validation": ("auto", "loop")}
    assert (
        promise_changes(whole, runs.tiny(tmp_path, "x", **(options | {"validation": "beside"})))
        == {}
    )


@pytest.mark.parametrize("patience", [0, 10**6])
def test_with_more_patience_or_none_it_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, patience: int
) -> None:
    options = STOPPING | {"early_stop_patience": patience}
    first = runs.tiny(tmp_path, "r", **STOPPING)
    longer, whole = runs.tiny(tmp_path, "r", **options), runs.tiny(tmp_path, "whole", **options)
    for config in (first, longer, whole):
        train_small(World(), config)
    assert [reason.partition(":")[0] for _, reason in ends(longer)] == [
        "stopped early", "the run's length",
    ]  # fmt: skip
    a, b = runs.checkpoints(longer), runs.checkpoints(whole)
    assert list(a) == list(b) == [3, 6, 9, 12]
    assert runs.differences(a[12], b[12]) == []
    assert lines(longer) == lines(whole)


def test_another_batch_size_sees_the_same_examples_at_the_same_rates(tmp_path: Path) -> None:
    found = {}
    for batch in (4, 8):
        config = runs.tiny(
            tmp_path, f"batch-{batch}", batch_size=batch, epochs=2.5, epoch_examples=24, warmup_examples=20,
            schedule="cosine", schedule_backbone="step", step_examples=30, resolution=16, crop=16, valid_examples=0,
            checkpoint_interval=100, log_images_interval=100,
        )  # fmt: skip
        train_small(World(), config)
        found[batch] = read_metrics(runs.store_of(config))
    for batch, rows in found.items():
        assert rows[-1]["examples"] == 60
        assert len(rows) == -(-60 // batch)
    # Rates by where their step begins; the last step of 8 has but 4 examples.
    begins = {
        batch: {batch * i: row["lr"] for i, row in enumerate(rows)} for batch, rows in found.items()
    }
    common = begins[4].keys() & begins[8].keys()
    assert sorted(common) == [0, 8, 16, 24, 32, 40, 48, 56]
    for place in common:
        assert begins[4][place] == begins[8][place]
    assert begins[4][16]["backbone"] == pytest.approx(0.8 * 1e-4)
    assert begins[4][40]["backbone"] == pytest.approx(0.1 * 1e-4)
    assert begins[4][40]["aspp"] == pytest.approx(0.5 * 5e-4)
    # A digest is a sum over examples: two steps of 4 are one of 8.
    small = [_lanes(row["digest"]) for row in found[4]]
    pairs = [small[i : i + 2] for i in range(0, len(small), 2)]
    sums = [[sum(lane) % 2**24 for lane in zip(*pair, strict=True)] for pair in pairs]
    assert sums == [_lanes(row["digest"]) for row in found[8]]


def _lanes(digest: str) -> list[int]:
    return [int(digest[i : i + 6], 16) for i in (0, 6, 12)]
