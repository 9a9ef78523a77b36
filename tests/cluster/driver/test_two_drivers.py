"""Two drivers of one run: the second is refused, succeeds the dead, or takes over; and the curve is that of one."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymat.config.flags import parse_run
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.drivers import FLAGS, driver, ended
from tests.support.kit import rows, starts, wait_for
from tests.support.paths import ROOT

PROJECT = ROOT


def newest_commit(store: Store) -> int:
    return max(event["step"] for event in of_kind(store, "commit"))


def undisturbed(storage: Path, steps: int) -> list[tuple[Any, ...]]:
    """The rows of the run when nobody else wants it; in this process's Ray."""
    from raymat.cluster.driver.launch import fit

    config = parse_run(
        "base", [*FLAGS, "--storage", str(storage), "--name", "run", "--steps", str(steps)]
    )
    fit(config)
    return rows(Store.open(config.storage, config.name))


def wait_until(what: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def of_kind(store: Store, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(store) if event["kind"] == kind]


@pytest.mark.chaos
def test_of_two_drivers_at_once_one_is_refused_and_who_comes_after_the_others_death_resumes(
    tmp_path: Path, cluster: None
) -> None:
    store = Store.open(str(tmp_path), "run")
    with driver(tmp_path, 10_000) as one, driver(tmp_path, 10_000) as other:
        wait_until(lambda: one.poll() is not None or other.poll() is not None)
        loser, winner = (one, other) if one.poll() is not None else (other, one)
        line = ended(loser, 2).strip().splitlines()[-1]
        assert re.fullmatch(
            rf"raymat: error: {tmp_path}/run is being trained by pid {winner.pid} of \S+ on host \S+, "
            r"since \S+ \S+ UTC: wait until it ends, stop it, or say --take-over",
            line,
        ), line
        wait_for(store, "commit", lambda event: event["step"] >= 20)
        winner.kill()
        steps = newest_commit(store) + 100  # its workers outlive it by some seconds
        with driver(tmp_path, steps) as third:
            said = ended(third, 0)
    assert "held by" not in said  # a dead process on the same machine needs no watching
    assert len(starts(store)) == 2
    assert of_kind(store, "restore")[0]["step"] >= 20
    assert rows(store) == undisturbed(tmp_path / "undisturbed", steps)


@pytest.mark.chaos
def test_a_driver_that_is_taken_over_commits_first_and_the_other_goes_on_from_there(
    tmp_path: Path,
) -> None:
    store = Store.open(str(tmp_path), "run")
    with driver(tmp_path, 10_000) as first:
        wait_for(store, "first_step", lambda event: True)
        with driver(tmp_path, 10_000, "--take-over") as second:
            line = ended(first, 2).strip().splitlines()[-1]
            found = re.fullmatch(
                rf"raymat: error: pid {second.pid} of \S+ on host \S+ takes the run over: the workers "
                r"left after step (\d+), step (\d+) is committed",
                line,
            )
            assert found, line
            assert found[1] == found[2]
            left = int(found[1])
            wait_for(store, "commit", lambda event: event["step"] > left)
            second.kill()
    (restored,) = of_kind(store, "restore")
    assert restored["step"] == left
    (end,) = of_kind(store, "end")
    assert end["outcome"] == "left"
    # The second's workers came when the first's had gone.
    assert [start["attempt"] for start in starts(store)] == [1, 2]
    assert starts(store)[1]["time"] > end["time"]
    steps = [row[0] for row in rows(store)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > left


@pytest.mark.chaos
def test_a_driver_that_slept_while_another_came_ends_and_so_did_its_workers_before(
    tmp_path: Path,
) -> None:
    store = Store.open(str(tmp_path), "run")
    with driver(tmp_path, 10_000) as first:
        wait_for(store, "first_step", lambda event: True)
        first.send_signal(signal.SIGSTOP)
        asleep = len(rows(store))
        wait_for(store, "commit", lambda event: event["step"] > asleep + 10)  # they train on
        with driver(tmp_path, 10_000) as second:
            begun = wait_for(store, "start", lambda event: event["attempt"] == 2)
            (end,) = of_kind(store, "end")
            assert (end["attempt"], end["outcome"]) == (1, "failed")
            assert f"pid {second.pid} of" in end["error"]
            assert end["time"] < begun["time"]
            first.send_signal(signal.SIGCONT)
            line = ended(first, 2).strip().splitlines()[-1]
            assert line.startswith("raymat: error: this driver has lost the lease on ")
            assert f"pid {second.pid} of" in line
            wait_for(store, "commit", lambda event: event["attempt"] == 2)
            assert second.poll() is None
            second.kill()
            said = second.communicate()[1]
    assert f"the run is held by pid {first.pid} of" in said
    # What the first committed last is where the second began.
    newest = max(e["step"] for e in of_kind(store, "commit") if e["attempt"] == 1)
    (restored,) = of_kind(store, "restore")
    assert restored["step"] >= newest
    steps = [row[0] for row in rows(store)]
    assert steps == list(range(1, len(steps) + 1))
