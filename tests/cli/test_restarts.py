"""What a run's restarts lost and took, from its events."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from raymat.analysis.restart_phases import restarts
from raymat.cli.restarts import main
from raymat.errors import StorageError
from raymat.storage.store import Store
from raymat.train.observability.attempt_events import MachineLost
from raymat.train.observability.events import EventLog
from tests.support.events import note

EVENTS = [
    {"time": 100.0, "attempt": 1, "kind": "start", "world": 2},
    {"time": 103.0, "attempt": 1, "kind": "first_step", "step": 1, "seconds": 2.5, "batch": 2.0},
    {
        "time": 130.0,
        "attempt": 1,
        "kind": "failure",
        "ranks": {"0": "gloo", "1": "ActorDiedError: died"},
        "last": {"0": {"silent": 1.0, "step": 40}, "1": {"silent": 1.5, "step": 39}},
    },
    {"time": 134.0, "attempt": 2, "kind": "start", "world": 1},
    {"time": 135.0, "attempt": 2, "kind": "restore", "step": 35},
    {"time": 138.0, "attempt": 2, "kind": "first_step", "step": 36, "seconds": 3.9, "batch": 3.0},
    {"time": 150.0, "attempt": 2, "kind": "leave", "step": 50, "reason": "node 1f is drained"},
    {"time": 152.0, "attempt": 3, "kind": "start", "world": 1},
    {"time": 153.0, "attempt": 3, "kind": "restore", "step": 50},
    {"time": 160.0, "attempt": 4, "kind": "start", "world": 2},
]


def test_the_phases_of_a_restart_add_up_to_the_time_from_the_last_sign_to_the_first_step() -> None:
    first, second, third = restarts(EVENTS)
    assert (first.attempt, first.world, first.resumed, first.lost) == (2, 1, 35, 5)
    assert (first.detect, first.start, first.restore) == (1.5, 4.0, 1.0)
    assert first.batch == pytest.approx(2.1)
    assert first.step == pytest.approx(0.9)
    assert first.total == pytest.approx(138.0 - (130.0 - 1.5))
    assert first.why == "rank 0: gloo; rank 1: ActorDiedError: died"
    assert (second.lost, second.detect, second.batch, second.total) == (0, 0.0, None, None)
    assert (third.why, third.lost, third.detect) == ("the driver ended", None, None)
    assert (third.resumed, third.restore) == (None, None)  # its workers are about to read


def test_a_restart_by_another_driver_has_no_time_to_start_since_nobody_drove_meanwhile() -> None:
    launch = {"time": 9000.0, "attempt": 1, "kind": "launch"}
    later = [event | {"time": event["time"] + 9000.0} for event in EVENTS[3:6]]
    (found,) = restarts([*EVENTS[:3], launch, *later])
    assert (found.detect, found.start, found.restore, found.total) == (1.5, None, 1.0, None)
    assert found.why == "rank 0: gloo; rank 1: ActorDiedError: died"


def test_a_sign_of_life_from_a_clock_that_is_ahead_is_of_now() -> None:
    ahead = EVENTS[2] | {"last": {"0": {"silent": -3.0, "step": 40}}}
    assert restarts([*EVENTS[:2], ahead, *EVENTS[3:6]])[0].detect == 0.0


def test_a_restart_is_told_by_its_attempts_where_clocks_disagree_on_the_order() -> None:
    ahead = [
        event | {"time": event["time"] + 7.0 * (event["kind"] == "failure")} for event in EVENTS
    ]
    first, second, _ = restarts(sorted(ahead, key=lambda event: event["time"]))
    assert (first.attempt, first.why[:12], first.start) == (2, "rank 0: gloo", 0.0)
    assert (second.attempt, second.why) == (3, "node 1f is drained")


def test_machines_that_were_lost_are_listed_even_if_nothing_was_restarted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(str(tmp_path), "run")
    EventLog.for_rank(store, 1, 0).emit(note("start", world=1))
    EventLog.for_driver(store).emit(
        MachineLost(node="1f" * 28, ip="10.0.0.7", reason="no answer", ranks=[], still=6.5)
    )
    assert main([store.url]) == 0
    assert capsys.readouterr().out.splitlines()[:5] == [
        "0 restarts",
        "",
        "machine   node      ranks  still  why",
        "10.0.0.7  1f1f1f1f  -      6.5    no answer",
        "1 machine lost",
    ]


def test_the_command_prints_a_table_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(str(tmp_path), "run")
    events = EventLog.for_rank(store, 1, 0)
    events.emit(note("start", world=2))
    events.emit(note("leave", step=50, reason="node 1f is drained"))
    later = EventLog.for_rank(store, 2, 0)
    later.emit(note("start", world=1))
    later.emit(note("restore", step=50))
    later.emit(note("first_step", step=51, seconds=1.0, batch=0.5))
    assert main([store.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["attempt", "workers", "resumed", "lost"]
    assert lines[1].split()[:4] == ["2", "1", "50", "0"]
    assert lines[2:5] == ["1 restart", "", "time of all workers  hours  share"]
    assert re.fullmatch(r"goodput \d+\.\d% of 0\.00 hours", lines[-1])
    assert main([store.url, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["resumed"], found["why"]) == (50, "node 1f is drained")
    with pytest.raises(StorageError, match="no run with events"):
        main([str(tmp_path / "nothing")])
