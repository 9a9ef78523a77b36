"""A plan is what a run takes: by hand where one loss is all that happens, and by the same for the same draws."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from raymat.analysis.planning.advice import make_plan
from raymat.analysis.planning.costs import RunCosts, measure
from raymat.analysis.planning.market import Change, Rates, Trace
from raymat.analysis.planning.replay import Setting, replay
from raymat.cli.runs.plan_command import main
from raymat.config.prices import Prices
from raymat.errors import ConfigError
from raymat.storage.store import Store
from raymat.train.observability.events import EventLog
from tests.support.events import note

COSTS = RunCosts(step=1.0, stall=0.5, save=10.0, detect=2.0, restart=15.0, start=30.0)
"""A checkpoint costs 0.5 + 5% of 10 s = 1 s."""


@dataclass(frozen=True)
class Fixed:
    """A market that changes as it is told."""

    told: tuple[Change, ...]

    def changes(self, wanted: int, seed: int) -> Iterator[Change]:
        return iter(self.told)

    def unnoticed_per_hour(self, wanted: int) -> float:
        return 0.0


def run(
    steps: int, *changes: Change, low: int = 1, high: int = 1, interval: int = 20
) -> dict[str, float]:
    setting = Setting(low, high, 0, interval)
    found = replay(COSTS, steps, setting, Fixed((Change(0.0, high), *changes)), 0)
    assert found.ends
    assert sum(found.by_cause.values()) == pytest.approx(found.wall * high)
    assert found.spot == pytest.approx(found.wall * high - found.by_cause["capacity"])
    return {cause: seconds for cause, seconds in found.by_cause.items() if seconds}


def test_an_undisturbed_run_starts_trains_and_saves() -> None:
    assert run(100) == {"start-up": 30.0, "training": 100.0, "save": 4 * 1.0 + 10.0}


def test_a_loss_takes_the_steps_since_the_newest_commit_which_is_ten_seconds_behind() -> None:
    # Cycles of 21 s from 30 on: at 100 three have passed, the third save 7 s ago: two are committed, 40 steps.
    found = run(100, Change(100.0, 0), Change(200.0, 1))
    assert found == {
        "start-up": 30.0 + 15.0,
        "training": 100.0,
        "lost": 27.0,
        "save": 3.0 + 2.0 + 10.0,
        "detection": 2.0,
        "capacity": 100.0 - 2.0,
    }


def test_a_loss_with_notice_takes_nothing() -> None:
    found = run(100, Change(100.0, 0, noticed=True), Change(200.0, 1))
    assert "lost" not in found
    assert found["training"] == 100.0


def test_workers_share_a_step_and_those_that_come_back_are_taken_in_after_a_commit() -> None:
    # 2 workers take 0.5 s a step; one goes at 50 with notice, and is back at 100.
    found = run(400, Change(50.0, 1, noticed=True), Change(100.0, 2), high=2)
    assert found["training"] == pytest.approx(400.0)
    assert "lost" not in found
    assert found["capacity"] == pytest.approx(50.0, abs=11.0)


def test_fewer_machines_than_the_run_may_have_at_least_stand_idle() -> None:
    found = run(100, Change(40.0, 1, noticed=True), Change(140.0, 2), low=2, high=2)
    assert found["idle"] == pytest.approx(100.0 - 10.5)


def alone_at_first(*changes: Change, steps: int = 100) -> dict[str, float]:
    """What a run takes whose second machine comes or goes with these changes; 8 s until it is taken in, then 20 s."""
    costs = replace(COSTS, join=8.0, grow=20.0)
    found = replay(costs, steps, Setting(1, 2, 0, 1000), Fixed((Change(0.0, 1), *changes)), 0)
    assert sum(found.by_cause.values()) == pytest.approx(found.wall * 2)
    return {cause: seconds for cause, seconds in found.by_cause.items() if seconds}


def test_a_machine_that_comes_is_idle_until_the_workers_have_left_to_take_it_in() -> None:
    assert alone_at_first(Change(60.0, 2)) == {
        "start-up": 30.0 + 2 * 20.0,
        "training": 38.0 + 2 * 31.0,  # of 100 steps 62 are left to two workers
        "save": 10.5 + 2 * 10.0,
        "idle": 8.0 + 10.5,
        "capacity": 60.0,
    }


def test_a_machine_that_goes_again_before_it_is_taken_in_stops_nobody() -> None:
    assert alone_at_first(Change(60.0, 2), Change(67.0, 1)) == {
        "start-up": 30.0,
        "training": 100.0,
        "save": 10.0,
        "idle": 7.0,
        "capacity": 140.0 - 7.0,
    }


def test_one_machine_more_for_many_workers_waits_until_a_restart_for_it_is_worth_it() -> None:
    changes = Fixed((Change(0.0, 8), Change(60.0, 9)))
    costs = replace(COSTS, join=8.0)
    found = replay(costs, 2000, Setting(1, 9, 0, 10_000), changes, 0).by_cause
    assert found["idle"] == pytest.approx(135.0 - 60.0 + 10.5)  # 9 * 15 s after the start


def test_fewer_workers_commit_after_as_many_seconds_and_as_many_steps_only_if_told_to() -> None:
    half = Fixed((Change(0.0, 1), Change(68.0, 0), Change(190.0, 1)))  # the other trains for 38 s
    lost = {
        auto: replay(COSTS, 200, Setting(1, 2, 0, 40, auto), half, 0).by_cause["lost"]
        for auto in (False, True)
    }
    # A save of the first 40 steps was still to come; one of the first 20 was committed.
    assert lost == {False: 38.0, True: 17.0}


def test_steps_take_what_they_took_on_as_many_workers() -> None:
    costs = RunCosts(step=0.6, world=2, paces={1: 1.0, 2: 0.6})
    assert [costs.step_on(workers) for workers in (1, 2, 4)] == [1.0, 0.6, 0.3]


def test_a_run_without_machines_never_ends() -> None:
    assert not replay(COSTS, 10, Setting(1, 1, 0, 20), Fixed((Change(0.0, 0),)), 0).ends


def test_the_same_seed_draws_the_same_market_and_another_another() -> None:
    for market in (Rates(0.5, noticed=0.5), Trace(300.0, (4, 3, 4, 0, 2))):
        first, again, other = (list(islice(market.changes(8, seed), 40)) for seed in (1, 1, 2))
        assert first == again != other
        assert all(a.at < b.at for a, b in pairwise(first))


def test_rates_lose_as_many_machines_as_they_say() -> None:
    changes = list(islice(Rates(2.0, back=60.0).changes(10, 0), 8001))
    losses = sum(b.machines < a.machines for a, b in pairwise(changes))
    expected = 2.0 * 10 * 30 / 31  # of ten machines each is there for 1800 s, then away for 60
    assert losses / (changes[-1].at / 3600) == pytest.approx(expected, rel=0.03)


def test_a_recording_stands_for_all_workers_by_its_most_machines() -> None:
    counts = {change.machines for change in islice(Trace(300.0, (4, 3, 2, 4)).changes(16, 0), 9)}
    assert counts == {16, 12, 8}
    assert list(Trace(300.0, (4, 4, 4)).changes(16, 0)) == [Change(0.0, 16)]


def test_on_demand_machines_are_taken_where_spot_machines_are_too_often_lost_for_their_price() -> (
    None
):
    def chosen(prices: Prices) -> int:
        return make_plan(COSTS, 20_000, 2, Rates(30.0), prices, draws=30).setting.ondemand

    assert chosen(Prices(spot=1.0, ondemand=1.05)) == 2
    assert chosen(Prices(spot=0.1, ondemand=5.0)) == 0


def test_costs_are_measured_from_events() -> None:
    events = [
        {"kind": "launch", "time": 0.0, "attempt": 0, "config": {"workers": "2"}},
        {"kind": "start", "time": 10.0, "attempt": 1, "world": 2, "writer": "rank-00000"},
        {"kind": "first_step", "time": 20.0, "attempt": 1, "step": 1, "seconds": 1.0, "batch": 0.5},
        {"kind": "commit", "time": 72.0, "attempt": 1, "step": 101, "seconds": 2.0, "stall": 0.0},
    ]
    step = {"step": 0.52, "world": 2, "paces": {2: 0.52}}
    assert measure(events) == {"stall": 0.0, "save": 2.0, "start": 20.0, **step}


def test_steps_that_took_no_time_by_a_clock_that_was_set_back_tell_no_pace() -> None:
    start = {"time": 0.0, "attempt": 1, "kind": "start", "world": 2}
    first = {
        "time": 9.0,
        "attempt": 1,
        "kind": "first_step",
        "step": 1,
        "seconds": 9.0,
        "batch": 8.0,
    }
    commit = {"time": 5.0, "attempt": 1, "kind": "commit", "step": 40, "seconds": 0.0, "stall": 0.0}
    assert "step" not in measure([start, commit, first])


def test_what_losses_and_growth_cost_is_measured_apart_and_without_the_wait_for_machines() -> None:
    def begun(at: float, attempt: int, world: int, first: float) -> list[dict[str, Any]]:
        return [
            {"kind": "start", "time": at, "attempt": attempt, "world": world, "writer": "rank-00000"},
            {"kind": "restore", "time": at + 1, "attempt": attempt, "step": 9},
            {"kind": "first_step", "time": first, "attempt": attempt, "step": 10, "seconds": 1.0, "batch": 0.5},
        ]  # fmt: skip

    def failed(at: float, attempt: int) -> dict[str, Any]:
        last = {"0": {"silent": 0.5, "step": 9}}
        return {"kind": "failure", "time": at, "attempt": attempt, "ranks": {}, "last": last}

    def room(at: float, workers: int) -> dict[str, Any]:
        return {"kind": "room", "time": at, "attempt": 0, "workers": workers, "least": 1}

    found = measure(
        [
            {"kind": "launch", "time": 0.0, "attempt": 0, "config": {"workers": "1:2"}},
            room(1, 2),
            *begun(10, 1, world=2, first=20),
            failed(100, 1),
            room(100, 1),
            *begun(103, 2, world=1, first=106),
            room(150, 2),
            {
                "kind": "notice",
                "time": 161,
                "attempt": 2,
                "reason": "",
                "deadline": None,
                "step": 60,
            },
            {"kind": "leave", "time": 163, "attempt": 2, "reason": "", "step": 61, "committed": 61},
            *begun(170, 3, world=2, first=181),
            failed(200, 3),
            room(200, 0),
            room(900, 1),
            *begun(903, 4, world=1, first=906),
        ]
    )
    assert found["restart"] == 6.0
    assert found["detect"] == 0.5
    assert found["join"] == 11.0
    assert found["grow"] == 18.0


def test_the_command_plans_a_run_like_another_and_draws_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(str(tmp_path), "run")
    log = EventLog.for_rank(store, 1, 0)
    log.emit(note("start", world=1))
    picture = tmp_path / "plan.png"
    flags = ["--steps", "1000", "--step-seconds", "0.5", "--workers", "1,2", "--draws", "10"]
    assert main([store.url, *flags, "-o", str(picture), "--price", "spot=1,ondemand=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1000 steps; step 0.5 s on 1 (given), stall 0.02 s (assumed)")
    assert lines[2].split() == [
        *("workers", "on", "demand", "commit", "every", "hours", "goodput", "no", "machine", "cost")
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[3:]] == ["1", "1:2"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main([*flags, "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert [plan["setting"]["high"] for plan in plans] == [1, 2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "what a step takes is not known"),
        (["--step-seconds", "1"], "how long the run is to be is not known"),
        (["--workers", "1.5"], "--workers must be whole numbers from 1 to 4096"),
        (["--noticed", "2"], "--noticed must be in"),
        (["a/b", "c/d"], "expected one run"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(flags: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        main(flags)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"metadata": {"gap_seconds": 0}, "data": [1]}', "no JSON",
                '{"metadata": {"gap_seconds": 300}, "data": [0, 0]}',
                '{"metadata": {"gap_seconds": 300}, "data": [-1, 2]}']
)  # fmt: skip
def test_a_file_that_is_no_recording_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"trace\.json: expected"):
        Trace.read(str(path))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[" * 100_000, "it is nested too deeply"),
        ('{"metadata": {"gap_seconds": 300}, "data": [1e400, 3]}', "data[0]: Expected int, got float"),
        ('{"metadata": {"gap_seconds": 300}, "data": [3.7, 2]}', "data[0]: Expected int, got float"),
        ('{"metadata": {"gap_seconds": 300}, "data": "443"}', "data: Expected array, got str"),
        ('{"metadata": {"gap_seconds": Infinity}, "data": [4, 3]}', "metadata.gap_seconds: Expected float"),
        ('{"metadata": {"gap_seconds": 300}, "data": [4, 3', "it is not JSON"),
        ('{"metadata": {"gap_seconds": 1e-9}, "data": [4, 3]}', "expected a gap of 1 s or more"),
        ('{"metadata": {"gap_seconds": 300}, "data": []}', "counts of which one is above 0"),
    ],
)  # fmt: skip
def test_a_recording_that_is_none_is_refused_with_what_is_wrong(
    tmp_path: Path, content: str, why: str
) -> None:
    (tmp_path / "trace.json").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(why)):
        Trace.read(str(tmp_path / "trace.json"))


def test_losses_that_few_workers_of_a_large_recording_do_not_see_are_none() -> None:
    recording = Trace(3600.0, (16, 15, 16, 15, 16))
    assert (recording.unnoticed_per_hour(16), recording.unnoticed_per_hour(2)) == (0.4, 0.0)


def test_a_market_that_changes_without_end_is_refused_instead_of_replayed() -> None:
    with pytest.raises(ConfigError, match="machines come and go 100,000 times before the run can"):
        replay(RunCosts(step=1e300), 10, Setting(1, 4, 0, 1), Rates(losses=1.0), seed=0)


def test_of_a_plan_that_comes_to_no_end_few_draws_are_replayed() -> None:
    plan = make_plan(COSTS, 40, 2, Fixed((Change(0.0, 0),)), None, draws=10**9)
    assert plan.ends == 0.0
