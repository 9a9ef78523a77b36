"""The ledger of a run's time gives every second of every slot one cause."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from raymat.analysis.goodput.ledger import Ledger, make_ledger

Events = list[dict[str, Any]]


def event(at: float, attempt: int, kind: str, **fields: Any) -> dict[str, Any]:
    writer = "driver" if kind in ("launch", "failure") else "rank-00000"
    return {"time": at, "attempt": attempt, "writer": writer, "kind": kind, **fields}


def commit(at: float, attempt: int, step: int, stall: float = 0.0) -> dict[str, Any]:
    """A state copied at `at` and committed 0.5 s later."""
    return event(at + 0.5, attempt, "commit", step=step, seconds=0.5, stall=stall)


def launch(at: float, workers: str = "1", attempt: int = 0, **fields: Any) -> dict[str, Any]:
    return event(at, attempt, "launch", config={"workers": workers}, **fields)


def started(at: float, attempt: int, world: int = 1) -> dict[str, Any]:
    return event(at, attempt, "start", world=world)


def first_step(at: float, attempt: int, step: int) -> dict[str, Any]:
    return event(at, attempt, "first_step", step=step, seconds=2.0, batch=1.0)


def ended(at: float, attempt: int) -> dict[str, Any]:
    return event(at, attempt, "end", outcome="complete")


def failed(at: float, attempt: int, silent: float, step: int) -> dict[str, Any]:
    return event(at, attempt, "failure", ranks={}, last={"0": {"silent": silent, "step": step}})


def causes(ledger: Ledger) -> dict[str, float]:
    return {cause: round(seconds, 6) for cause, seconds in ledger.by_cause.items()}


UNDISTURBED = [
    launch(100),
    started(103, 1),
    first_step(105, 1, 1),
    commit(120, 1, 15, stall=0.25),
    event(141, 1, "validation", step=30, seconds=6.0, place="loop", waited=0.0),
    ended(150, 1),
    event(151, 1, "merged"),
]


def test_an_undisturbed_run_has_start_up_training_stalls_validations_and_an_end() -> None:
    found = make_ledger(UNDISTURBED)
    assert causes(found) == {
        "training": 150 - 105 - 0.25 - 6,
        "save stall": 0.25,
        "validation": 6.0,
        "restore": 2.0,
        "start-up": 3.0,
        "ending": 1.0,
    }
    assert found.slot_seconds == 51.0
    assert found.goodput == pytest.approx(38.75 / 51)


def test_steps_after_the_checkpoint_that_was_gone_on_from_are_lost() -> None:
    found = make_ledger(
        [
            launch(0),
            started(2, 1),
            first_step(4, 1, 1),
            commit(13, 1, 10),
            failed(20, 1, silent=1.5, step=15),
            started(23, 2),
            event(24, 2, "restore", step=10),
            first_step(26, 2, 11),
            ended(40, 2),
        ]
    )
    assert causes(found) == {
        "training": (13 - 4) + (40 - 26),
        "lost": 18.5 - 13,
        "restore": 2.0 + 1.0,
        "start-up": 2.0 + 3.0 + 2.0,
        "detection": 1.5,
    }


def test_a_later_attempt_that_goes_further_back_loses_what_the_ones_between_kept() -> None:
    found = make_ledger(
        [
            launch(0),
            started(0, 1),
            first_step(0, 1, 0),
            commit(10, 1, 10),
            event(20, 1, "leave", step=20, reason="", committed=20),
            started(20, 2),
            event(20, 2, "restore", step=20),
            first_step(20, 2, 21),
            event(30, 2, "leave", step=30, reason="", committed=30),
            started(30, 3),
            event(30, 3, "restore", step=10),
            first_step(30, 3, 11),
            ended(60, 3),
        ]
    )
    assert causes(found) == {"training": 10.0 + 30.0, "lost": 10.0 + 10.0}


def test_a_driver_that_died_leaves_its_run_undriven_from_its_last_sign() -> None:
    died = [launch(0), started(0, 1), first_step(0, 1, 0), commit(10, 1, 10)]
    after = [started(105, 2), event(105, 2, "restore", step=10), first_step(105, 2, 11), ended(115, 2)]  # fmt: skip
    heard = causes(make_ledger([*died, launch(100, attempt=1, heard=14.0), *after]))
    assert heard == {"training": 20.0, "lost": 4.0, "undriven": 86.0, "start-up": 5.0}
    unheard = causes(make_ledger([*died, launch(100, attempt=1), *after]))
    assert unheard == {"training": 20.0, "lost": 0.5, "undriven": 89.5, "start-up": 5.0}


FIRST = [launch(0), started(0, 1), first_step(0, 1, 0), commit(10, 1, 10)]
AGAIN = [started(1005, 2), event(1005, 2, "restore", step=10), first_step(1005, 2, 11), ended(1015, 2)]  # fmt: skip


@pytest.mark.parametrize(
    ("last", "before"),
    [
        ([event(10, 1, "leave", step=10, reason="", committed=10), event(12, 1, "end", outcome="left")], {"start-up": 2.0}),
        ([failed(12, 1, silent=2.0, step=10)], {"detection": 2.0}),
        ([ended(10, 1), event(12, 1, "merged")], {"ending": 2.0}),
    ],
    ids=["stopped", "failed", "complete"],
)  # fmt: skip
def test_until_a_run_is_launched_again_nobody_drives_it_whatever_ended_the_driver_before(
    last: Events, before: dict[str, float]
) -> None:
    longer = event(999, 1, "longer", step=10, examples=10)
    found = make_ledger([*FIRST, *last, longer, launch(1000, attempt=1), *AGAIN])
    expected = {"training": 20.0, "undriven": 988.0, "start-up": 5.0 + before.pop("start-up", 0.0)}
    assert causes(found) == expected | before


def test_what_workers_write_after_another_driver_took_the_run_changes_no_cause() -> None:
    late = [commit(1006, 1, 900, stall=3.0), event(1010, 1, "leave", step=990, reason="", committed=10)]  # fmt: skip
    events = [*FIRST, launch(1000, attempt=1, heard=12.0), *AGAIN, *late]
    found = make_ledger(sorted(events, key=lambda e: e["time"]))
    assert causes(found) == {"training": 20.0, "lost": 2.0, "undriven": 988.0, "start-up": 5.0}


def test_workers_that_die_before_they_have_a_number_lengthen_no_training() -> None:
    no_signs = event(40, 1, "failure", ranks={}, last={})
    after = [started(50, 2), event(50, 2, "restore", step=10), first_step(50, 2, 11), ended(60, 2)]
    found = make_ledger([*FIRST, failed(12, 1, silent=2.0, step=10), no_signs, *after])
    assert causes(found) == {"training": 20.0, "detection": 2.0, "start-up": 38.0}


def test_clocks_that_differ_do_not_let_an_attempt_start_before_its_launch_or_the_attempt_before() -> (
    None
):
    behind = [{**e, "time": e["time"] - 8.0} for e in AGAIN]
    events = [*FIRST, ended(10, 1), launch(1000, attempt=1), *behind]
    found = make_ledger(sorted(events, key=lambda e: e["time"]))
    assert causes(found) == {"training": 17.0, "ending": 0.5, "undriven": 989.5}
    assert found.slot_seconds == 1007.0


def test_a_clock_that_jumps_back_while_workers_start_leaves_no_time_without_training() -> None:
    jumped = [started(60, 1), event(3, 1, "restore", step=4), first_step(5, 1, 5), ended(80, 1)]
    found = make_ledger(sorted([launch(0), *jumped], key=lambda e: e["time"]))
    assert causes(found) == {"start-up": 60.0, "training": 20.0}


def test_a_driver_with_fewer_workers_than_the_one_before_has_as_many_slots_as_it_asks_for() -> None:
    before = [launch(0, "4"), started(0, 1, world=4), first_step(0, 1, 0), ended(10, 1)]
    after = [launch(20, "2", attempt=1), started(25, 2, world=2), first_step(25, 2, 1), ended(30, 2)]  # fmt: skip
    found = make_ledger([*before, *after])
    assert causes(found) == {"lost": 4 * 10.0, "undriven": 4 * 10.0, "start-up": 2 * 5.0, "training": 2 * 5.0}  # fmt: skip


def test_waits_for_data_stand_before_the_event_that_tells_of_them_and_are_no_stall_or_validation() -> (
    None
):
    found = make_ledger(
        [
            launch(0),
            started(0, 1),
            first_step(0, 1, 1),
            event(10, 1, "commit", step=10, seconds=2.0, stall=1.0, data_wait=4.0),
            event(20, 1, "validation", step=20, seconds=3.0, place="loop", waited=0.0),
            event(30, 1, "commit", step=30, seconds=0.0, stall=0.0, data_wait=6.5),
            event(32, 1, "end", outcome="complete", data_wait=7.0),
        ]
    )
    assert causes(found) == {
        "training": 21.0,
        "data wait": 7.0,
        "save stall": 1.0,
        "validation": 3.0,
    }
    waits = [(s.begin, s.end) for s in found.spans if s.cause == "data wait"]
    assert waits == [(5.0, 8.0), (9.0, 10.0), (27.5, 30.0), (31.5, 32.0)]


def test_waits_for_data_of_steps_that_were_done_again_are_lost() -> None:
    found = make_ledger(
        [
            launch(0),
            started(0, 1),
            first_step(0, 1, 1),
            event(10, 1, "commit", step=10, seconds=0.0, stall=0.0, data_wait=2.0),
            event(20, 1, "commit", step=20, seconds=0.0, stall=0.0, data_wait=5.0),
            event(20, 1, "leave", step=20, reason="", committed=20, data_wait=5.0),
            started(20, 2),
            event(20, 2, "restore", step=10),
            first_step(20, 2, 11),
            event(40, 2, "end", outcome="complete", data_wait=1.0),
        ]
    )
    assert causes(found) == {"training": 8.0 + 19.0, "data wait": 2.0 + 1.0, "lost": 10.0}


def test_more_waits_than_time_to_wait_are_as_much_as_there_was() -> None:
    told = event(4, 1, "commit", step=4, seconds=1.0, stall=1.0, data_wait=50.0)
    found = make_ledger([launch(0), started(0, 1), first_step(0, 1, 1), told, ended(6, 1)])
    assert causes(found) == {"training": 2.0, "data wait": 3.0, "save stall": 1.0}


def test_slots_without_a_machine_wait_for_capacity() -> None:
    found = make_ledger(
        [launch(0, "1:4"), started(10, 1, world=3), first_step(12, 1, 1), ended(52, 1)]
    )
    assert causes(found) == {
        "training": 3 * 40.0,
        "restore": 3 * 2.0,
        "start-up": 4 * 10.0,
        "capacity": 42.0,
    }
    assert found.slot_seconds == 4 * 52.0


def room(at: float, workers: int, least: int = 1) -> dict[str, Any]:
    return event(at, 0, "room", workers=workers, least=least)


def test_a_slot_whose_machine_waits_to_be_taken_in_is_idle_and_starts_up_with_the_others() -> None:
    found = make_ledger(
        [
            launch(0, "1:3"),
            room(1, 1),
            started(5, 1),
            first_step(7, 1, 1),
            room(40, 2),
            event(52, 1, "leave", step=45, reason="", committed=45),
            started(56, 2, world=2),
            event(57, 2, "restore", step=45),
            first_step(60, 2, 46),
            ended(80, 2),
        ]
    )
    assert causes(found) == {
        "training": 45.0 + 2 * 20.0,
        "restore": 2.0 + 2 * 1.0,
        "start-up": 3 * 1.0 + 4.0 + 2 * 4.0 + 2 * 3.0,
        "idle": 12.0,
        "capacity": 2 * 39.0 + 12.0 + 28.0,
    }


def test_machines_that_are_fewer_than_the_run_needs_are_idle_until_there_are_enough() -> None:
    found = make_ledger(
        [
            launch(0, "2:4"),
            room(0, 4, least=2),
            started(0, 1, world=4),
            first_step(0, 1, 0),
            commit(10, 1, 10),
            failed(10, 1, silent=0.0, step=10),
            room(10, 0, least=2),
            room(50, 1, least=2),
            room(70, 3, least=2),
            started(73, 2, world=3),
            event(73, 2, "restore", step=10),
            first_step(73, 2, 11),
            ended(83, 2),
        ]
    )
    assert causes(found) == {
        "training": 4 * 10.0 + 3 * 10.0,
        "start-up": 3 * 3.0,
        "idle": 20.0,
        "capacity": 4 * 40.0 + 3 * 20.0 + 3.0 + 10.0,
    }


def test_workers_that_a_drained_machine_still_has_train_on() -> None:
    found = make_ledger(
        [launch(0, "2"), room(0, 2), started(0, 1, world=2), first_step(0, 1, 0), room(5, 1), ended(9, 1)]
    )  # fmt: skip
    assert causes(found) == {"training": 18.0}


def test_a_new_driver_has_yet_to_count_the_machines() -> None:
    died = [launch(0, "2"), room(0, 2), started(0, 1, world=2), first_step(0, 1, 0)]
    again = [launch(10, "2", attempt=1, heard=9.5), started(14, 2, world=2)]
    lacking = [*died, room(9, 0), *again]
    assert causes(make_ledger(lacking, until=14.0))["start-up"] == 2 * 4.0


def test_a_run_that_trains_now_is_accounted_for_until_now() -> None:
    running = [launch(0), started(1, 1), first_step(2, 1, 1)]
    assert causes(make_ledger(running, until=12.0)) == {
        "training": 10.0,
        "restore": 1.0,
        "start-up": 1.0,
    }


def test_workers_that_have_not_restored_yet_say_nothing_of_what_is_lost() -> None:
    history = [launch(0), started(2, 1), first_step(4, 1, 1), commit(14, 1, 11)]
    restoring = [*history, failed(17, 1, silent=2.0, step=12), started(20, 2)]
    assert causes(make_ledger(restoring, until=21.0))["training"] == 11.0
    gave_up = [*restoring, failed(22, 2, silent=1.0, step=0), started(24, 3)]
    assert causes(make_ledger(gave_up, until=25.0))["training"] == 11.0
    restored = [*gave_up, event(26, 3, "restore", step=11)]
    found = causes(make_ledger(restored, until=27.0))
    assert (found["training"], found["lost"]) == (10.0, 1.0)
    from_nothing = [*gave_up, first_step(26, 3, 1)]
    assert "training" not in causes(make_ledger(from_nothing, until=26.0))


def test_a_run_whose_workers_have_not_started_yet_starts_up() -> None:
    assert causes(make_ledger([launch(0, "2")], until=5.0)) == {"start-up": 10.0}


def test_a_log_without_drivers_or_attempts_has_an_empty_ledger() -> None:
    assert make_ledger([]).spans == make_ledger([{"kind": "odd"}]).spans == ()
    assert make_ledger([]).goodput == 1.0


class History:
    """A run's history whose true account is known: it trains 10 steps a second on up to 4 workers, and is disturbed."""

    def __init__(self, seed: int) -> None:
        self.draws = random.Random(seed)
        self.now, self.attempt, self.step = 1000.0, 0, 0
        self.events: Events = []
        self.truth: Counter[str] = Counter()
        self.pending: list[tuple[int, list[tuple[str, float]]]] = []
        """Stretches of training that may still be lost, by the step that they lead from."""

    def spend(self, cause: str, seconds: float, slots: int = 4) -> None:
        self.truth[cause] += seconds * slots
        self.truth["capacity"] += seconds * (4 - slots)
        self.now += seconds

    def play(self, disturbances: int) -> None:
        self.events.append(launch(self.now, "2:4"))
        self.spend("start-up", self.draws.uniform(5, 20))
        for left in range(disturbances, -1, -1):
            self.live(last=left == 0)

    def live(self, last: bool) -> None:
        draws, self.attempt = self.draws, self.attempt + 1
        number, world = self.attempt, draws.randint(2, 4)
        self.events.append(started(self.now, number, world))
        self.spend("restore", draws.uniform(0.5, 3), world)
        if self.step:
            self.events.append(event(self.now, number, "restore", step=self.step))
            self.spend("start-up", draws.uniform(1, 4), world)
        self.events.append(first_step(self.now, number, self.step + 1))
        done, waited = self.step, 0.0
        for _ in range(draws.randint(1, 8)):
            steps = draws.randint(10, 200)
            self.spend("training", steps / 10, world)
            done += steps
            stall, wait = draws.uniform(0, 0.05), draws.uniform(0, 0.5)
            waited += wait
            commit = {"step": done, "seconds": stall, "stall": stall, "data_wait": waited}
            self.spend("data wait", wait, world)
            self.spend("save stall", stall, world)
            self.events.append(event(self.now, number, "commit", **commit))
            self.step = done
        how = "complete" if last else draws.choice(("failure", "leave", "died"))
        if how == "complete":
            self.events.append(ended(self.now, number))
            return
        lost = draws.randint(10, 100)
        if how == "leave":
            self.spend("training", lost / 10, world)
            self.step = done + lost
            self.events.append(event(self.now, number, "leave", step=self.step, reason="", committed=self.step))  # fmt: skip
            self.spend("start-up", draws.uniform(2, 9), world)
            return
        self.spend("lost", lost / 10, world)
        if how == "failure":
            silent = draws.uniform(0.1, 6)
            self.spend("detection", silent, world)
            self.events.append(failed(self.now, number, silent, done + lost))
            self.spend("start-up", draws.uniform(2, 9), world)
            return
        heard = self.now
        self.spend("undriven", draws.uniform(20, 4000))
        self.events.append(launch(self.now, "2:4", attempt=number, heard=heard))
        self.spend("start-up", draws.uniform(5, 20), world)


@pytest.mark.parametrize("seed", range(10))
def test_the_account_of_a_random_history_is_its_truth(seed: int) -> None:
    history = History(seed)
    history.play(disturbances=12)
    events = sorted(history.events, key=lambda e: e["time"])
    found = make_ledger(events, until=history.now)
    wall = 4 * (history.now - 1000.0)
    assert found.slot_seconds == pytest.approx(wall, rel=1e-9)
    true = {cause: seconds for cause, seconds in history.truth.items() if seconds}
    assert found.by_cause == pytest.approx(true, abs=1e-6 * wall)
