"""How long a run stands still after a loss, and what it does again, over ten or twenty cases each.

The seconds hold for a machine with two cores and nothing else to do; they are printed, with the
split by phase, and compared with the goal only loosely: a loaded machine takes longer.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raymat.analysis.compare import diff
from raymat.analysis.restart_phases import Restart, restarts
from raymat.cli.diff import text
from raymat.cluster.blackboard import Blackboard
from raymat.cluster.controller.prestart import DELAY_SECONDS, RAY_PROCESSES
from raymat.cluster.driver.launch import fit
from raymat.config.run import RunConfig
from raymat.errors import RaymatError
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.run.notice import Notice
from tests.support.heads import idle_processes
from tests.support.kit import rows, starts, tiny, wait_for
from tests.support.nodes import Nodes, processes_of

INTERVAL = 7
READY_SECONDS = DELAY_SECONDS + (2 + RAY_PROCESSES) * 4.0
"""A run of two workers has trained so long when all its spare processes are there."""


def wait_for_attempt(store: Store, attempt: int, committed: bool = True) -> dict[str, Any]:
    """The first step of this attempt or a later one; with `committed` also a commit of it."""
    first = wait_for(store, "first_step", lambda event: event["attempt"] >= attempt)
    if committed:
        wait_for(store, "commit", lambda event: event["attempt"] >= first["attempt"])
    return first


def table(name: str, moments: list[float], found: list[Restart], store: Store) -> list[float]:
    """Print each case and the medians; returns the seconds from each moment to the next first step."""
    firsts = [event["time"] for event in read_events(store) if event["kind"] == "first_step"]
    totals = [next(at for at in firsts if at > moment) - moment for moment in moments]
    print(f"\n{name}: {len(moments)} cases")
    print("  total   found  start restore batch  step   lost")
    phases = []
    for moment, total in zip(moments, totals, strict=True):
        restart = next(r for r in found if r.at > moment - 3)
        start = next(
            event["time"] for event in starts(store) if event["attempt"] == restart.attempt
        )
        detect = start - (restart.start or 0.0) - moment
        phases.append((detect, restart.start, restart.restore, restart.batch, restart.step))
        shown = "  ".join(f"{seconds or 0.0:5.1f}" for seconds in phases[-1])
        print(f"  {total:5.1f}  {shown}  {restart.lost}")
    medians = [statistics.median(p or 0.0 for p in phase) for phase in zip(*phases, strict=True)]
    print(f"  median {statistics.median(totals):.1f} s: {', '.join(f'{m:.1f}' for m in medians)}")
    print(f"  most steps done again: {max(r.lost or 0 for r in found)}")
    return totals


def lost_steps(store: Store) -> list[int]:
    """Of each restart, by what the workers told."""
    return [restart.lost or 0 for restart in restarts(read_events(store))]


def train_while(config: RunConfig, boards: list[Blackboard], torment: Callable[[], None]) -> None:
    """Train as long as `torment` takes; then the run is told to end."""
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(fit, config)
        try:
            torment()
        finally:
            boards[-1].request_leave(Notice("all cases are done", final=True))
        with pytest.raises(RaymatError, match="all cases are done"):
            training.result()


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_killed_worker_costs_seconds_and_no_more_than_the_interval(
    tmp_path: Path, cluster: None, boards_made: list[Blackboard]
) -> None:
    draws = random.Random(1)
    config = tiny(
        "base", tmp_path, "run", workers="2", valid_examples=0, steps=100_000,
        checkpoint_interval=INTERVAL,
    )  # fmt: skip
    store = Store.open(config.storage, config.name)
    moments: list[float] = []

    def torment() -> None:
        attempt = 1
        for _ in range(10):
            first = wait_for_attempt(store, attempt)
            time.sleep(READY_SECONDS + draws.uniform(0, 2))
            start = next(e for e in starts(store) if e["attempt"] == first["attempt"])
            moments.append(time.time())
            os.kill(draws.choice(start["ranks"])["pid"], signal.SIGKILL)
            attempt = first["attempt"] + 1
        wait_for_attempt(store, attempt)

    train_while(config, boards_made, torment)
    found = restarts(read_events(store))
    assert len(moments) == len(found) == 10
    totals = table("a worker killed", moments, found, store)
    assert max(restart.lost or 0 for restart in found) <= 2 * INTERVAL
    seen = rows(store)
    assert [row[:2] for row in seen] == [(k, 8 * k) for k in range(1, len(seen) + 1)]
    assert statistics.median(totals) < 60


@pytest.mark.chaos
def test_workers_go_on_in_processes_that_were_kept_for_them_and_that_changes_no_bit(
    tmp_path: Path, cluster: None, boards_made: list[Blackboard]
) -> None:
    options: dict[str, Any] = {"workers": "2", "valid_examples": 0}
    config = tiny("base", tmp_path, "disturbed", steps=100_000, **options)
    store = Store.open(config.storage, config.name)
    kept: set[int] = set()

    def torment() -> None:
        wait_for_attempt(store, 1)
        time.sleep(READY_SECONDS)
        kept.update(idle_processes())
        os.kill(starts(store)[0]["ranks"][1]["pid"], signal.SIGKILL)
        wait_for_attempt(store, 2)

    train_while(config, boards_made, torment)
    assert {rank["pid"] for rank in starts(store)[1]["ranks"]} <= kept
    last = rows(store)[-1][0]
    fit(tiny("base", tmp_path, "undisturbed", steps=last, **options))
    whole = Store.open(config.storage, "undisturbed")
    found = diff(whole.url, store.url)
    assert not found.different_tensors, text(found)
    assert rows(store) == rows(whole)


class Farm:
    """Two machines with a worker each, of which one goes and another comes, again and again."""

    def __init__(self, nodes: Nodes, boards: list[Blackboard], folder: Path, seed: int) -> None:
        self.nodes, self._boards, self._draws = nodes, boards, random.Random(seed)
        nodes.add_together(2)
        self.config = tiny(
            "base", folder, "run", workers="1:2", valid_examples=0, steps=100_000,
            checkpoint_interval=INTERVAL, decode_tasks=2,
        )  # fmt: skip
        self.store = Store.open(self.config.storage, self.config.name)
        self.moments: list[float] = []

    def run(self, cases: int, lose: Callable[[Any], None], rest: float = 0.0) -> None:
        """`lose` takes a machine away that has a worker, after at least `rest` seconds of training; another comes when
        training goes on without it."""
        train_while(self.config, self._boards, lambda: self._torment(cases, lose, rest))

    def _torment(self, cases: int, lose: Callable[[Any], None], rest: float) -> None:
        first = wait_for_attempt(self.store, 1)
        for _ in range(cases):
            time.sleep(rest + self._draws.uniform(0, 2))
            node = self._draws.choice(self._working(first["attempt"]))
            self.moments.append(time.time())
            lose(node)
            first = wait_for_attempt(self.store, first["attempt"] + 1)
            assert starts(self.store)[-1]["world"] == 1
            if node in self.nodes.added:
                self.nodes.kill(node)
            self.nodes.add()
            first = wait_for_attempt(self.store, first["attempt"] + 1)
            assert starts(self.store)[-1]["world"] == 2

    def _working(self, attempt: int) -> list[Any]:
        """The machines that have a worker."""
        start = next(event for event in starts(self.store) if event["attempt"] == attempt)
        workers = {rank["pid"] for rank in start["ranks"]}
        return [node for node in self.nodes.added if workers & set(processes_of(node))]


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_killed_machine_costs_seconds_and_no_more_than_the_interval(
    nodes: Nodes, boards_made: list[Blackboard], tmp_path: Path
) -> None:
    farm = Farm(nodes, boards_made, tmp_path, seed=2)
    farm.run(10, nodes.kill, READY_SECONDS)
    found = [restart for restart in restarts(read_events(farm.store)) if restart.world == 1]
    totals = table("a machine killed, going on with one fewer", farm.moments, found, farm.store)
    assert max(restart.lost or 0 for restart in found) <= 2 * INTERVAL
    assert statistics.median(totals) < 60


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_frozen_machine_is_left_behind(
    nodes: Nodes, boards_made: list[Blackboard], tmp_path: Path
) -> None:
    farm = Farm(nodes, boards_made, tmp_path, seed=3)
    farm.run(3, nodes.freeze, READY_SECONDS)
    found = [restart for restart in restarts(read_events(farm.store)) if restart.world == 1]
    totals = table("a machine frozen, going on with one fewer", farm.moments, found, farm.store)
    assert statistics.median(totals) < 120


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seconds", [3.0, 10.0])
def test_a_notice_some_seconds_ahead_loses_nothing(
    nodes: Nodes, boards_made: list[Blackboard], tmp_path: Path, seconds: float
) -> None:
    farm = Farm(nodes, boards_made, tmp_path, seed=4)

    def reclaim(node: Any) -> None:
        told = time.time()
        nodes.drain(node, seconds)
        time.sleep(max(0.0, told + seconds - time.time()))
        nodes.kill(node)

    farm.run(10, reclaim)
    lost = lost_steps(farm.store)
    print(f"\na notice {seconds:g} s ahead, and growing again: steps lost {lost}")
    assert lost == [0] * 20
