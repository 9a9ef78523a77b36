"""A machine that only decoded is lost: it is seen, said and timed, and a head that is slow to see it is told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from raymat.analysis.compare import diff
from raymat.cli.diff import text
from raymat.cluster.blackboard import Blackboard, SignOfLife
from raymat.cluster.driver.machine_watch import SETTLE_SECONDS, MachineWatch
from raymat.cluster.ray_internals import apply_settings
from raymat.storage.store import Store
from raymat.train.loop.watchdog import Activity
from raymat.train.observability.events import read_events
from raymat.train.observability.progress import Progress
from tests.support.heads import wait_for
from tests.support.kit import rows, starts, tiny
from tests.support.nodes import Nodes, decodes, fit_disturbed, parent_of, raylet
from tests.support.runs import without_ray


@pytest.fixture
def slow_nodes() -> Iterator[Nodes]:
    """A cluster as `ray start` makes it: its head takes 15 s to see that a node died, or longer."""
    ray.shutdown()
    apply_settings()
    nodes = Nodes(slow=True)
    yield nodes
    nodes.stop()


def progress(step: int) -> Progress:
    return Progress(
        stage="base", step=step, total_steps=100, examples_left=100, examples_per_second=1.0, loss=None,
        valid_loss=None, commit_step=None, commit_time=None, world=1, attempt=1,
    )  # fmt: skip


def dead(node: str) -> dict[str, object] | None:
    return next((n for n in ray.nodes() if n["NodeID"] == node and not n["Alive"]), None)


def lines(board: Blackboard) -> list[str]:
    return [line.text for line in board.news(0).lines]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", pytest.param("frozen", marks=pytest.mark.chaos)])
def test_a_machine_without_an_answer_is_dead_within_seconds_while_training_stands_still(
    slow_nodes: Nodes, tmp_path: Path, how: str
) -> None:
    store = Store.open(str(tmp_path), "run")
    board = Blackboard.start()
    machine, other = slow_nodes.add_reader(), slow_nodes.add_reader()
    name = f"machine {machine.node_ip_address} (node {machine.node_id[:8]})"
    had, ranks = ("which only decoded", []) if how == "killed" else ("with rank 3", [3])
    for rank in ranks:
        board.sign(rank, SignOfLife("a", machine.node_id, 9, Activity("training", 1, time.time())))
    with MachineWatch(board, store):
        board.set_progress(progress(1))
        time.sleep(3)  # nothing moves, and everybody answers: nobody is dead
        assert dead(machine.node_id) is None
        board.forget_workers()  # as when the next attempt begins before the head takes the machine for dead
        gone = time.monotonic()
        (slow_nodes.kill if how == "killed" else slow_nodes.freeze)(machine)
        wait_for(lambda: dead(machine.node_id), 60)
        seconds = time.monotonic() - gone
        print(f"a machine that was {how} is dead after {seconds:.1f} s")
        wait_for(lambda: lines(board), 10)
        assert lines(board) == [f"{name}, {had}, is lost: its raylet did not answer 3 times"]
        time.sleep(SETTLE_SECONDS)
        board.set_progress(progress(2))
        wait_for(lambda: len(lines(board)) == 2, 10)
        (event,) = read_events(store)
        assert (event["kind"], event["node"], event["ranks"]) == (
            "machine_lost",
            machine.node_id,
            ranks,
        )
        assert event["still"] > seconds + SETTLE_SECONDS
        assert lines(board)[1] == f"{name} was lost: training stood still for {event['still']} s"
    if how == "frozen":
        slow_nodes.kill(machine)
    assert dead(other.node_id) is None
    assert seconds < (
        10 if how == "killed" else 25
    )  # without a word from the driver 15, and 30 or more


@pytest.mark.chaos
def test_a_lost_machine_that_only_decoded_is_an_event_and_changes_no_bit(
    slow_nodes: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = {
        "workers": "1",
        "steps": 150,
        "valid_examples": 0,
        "decode_tasks": 3,  # one on each machine
        "batch_size": 2,
    }
    config = tiny("base", tmp_path, "disturbed", **options)
    store = Store.open(config.storage, config.name)
    worker, reader = slow_nodes.add(), slow_nodes.add_reader()

    def disturb() -> None:
        wait_for(lambda: decodes(reader), 240)
        slow_nodes.kill(reader)

    fit_disturbed(config, disturb)
    (start,) = starts(store)
    assert parent_of(start["ranks"][0]["pid"]) in (None, raylet(worker))
    (lost,) = [event for event in read_events(store) if event["kind"] == "machine_lost"]
    assert (lost["node"], lost["ranks"]) == (reader.node_id, [])
    said = capfd.readouterr()
    print(f"training stood still for {lost['still']} s")
    assert f"(node {reader.node_id[:8]}), which only decoded, is lost: " in said.out + said.err
    whole = without_ray(tiny("base", tmp_path, "undisturbed", **options))
    found = diff(whole.url, store.url)
    assert not found.different_tensors, text(found)
    assert rows(store) == rows(whole)
