"""Machines that come and go, as several nodes of a real Ray cluster on this one: drained with a deadline, killed, added."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from kit import rows, starts, tiny, wait_for
from ray.cluster_utils import Cluster

from raymat.checkpoint.store import Store
from raymat.cluster.launch import fit
from raymat.cluster.trainer import apply_settings
from raymat.config import RunConfig
from raymat.train.events import read_events

STEPS = 60


class Nodes:
    """A head without room for workers, and nodes with room for one worker and its read tasks each."""

    def __init__(self) -> None:
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "object_store_memory": 2**28,
            },
        )
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.added: list[Any] = []

    def add(self) -> Any:
        node = self.cluster.add_node(num_cpus=2, object_store_memory=2**28, wait=True)
        self.added.append(node)
        return node

    def drain(self, node: Any, seconds: float) -> None:
        """What a spot watcher does when it is told that its machine will be reclaimed."""
        deadline = int((time.time() + seconds) * 1000)
        client = ray._raylet.GcsClient(address=self.cluster.address)
        # 2: preempted, as against idle
        accepted, why = client.drain_node(node.node_id, 2, "reclaimed", deadline)
        assert accepted, why

    def kill(self, node: Any) -> None:
        """Take the machine away: its raylet and, with it, all of its workers."""
        self.cluster.remove_node(node, allow_graceful=False)
        self.added.remove(node)

    def stop(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    apply_settings()
    nodes = Nodes()
    yield nodes
    nodes.stop()


def fit_disturbed(config: RunConfig, disturb: Callable[[], None]) -> None:
    """Train while `disturb` runs. That is done here, in the main thread: nodes can be started in no other."""
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(fit, config)
        disturb()
        training.result()


def worlds(store: Store) -> list[int]:
    return [start["world"] for start in starts(store)]


@pytest.mark.chaos
def test_a_drained_node_is_left_in_time_and_no_step_is_lost(nodes: Nodes, tmp_path: Path) -> None:
    going, _ = nodes.add(), nodes.add()
    config = tiny(
        "base", tmp_path, "drained", workers="1:2", steps=STEPS, valid_examples=0,
        checkpoint_interval=1000, precision="fp64",
    )  # fmt: skip
    store = Store.open(config.storage, config.name)

    def disturb() -> None:
        wait_for(store, "first_step", lambda event: True)
        nodes.drain(going, 20.0)
        wait_for(store, "leave", lambda event: True)
        time.sleep(1)
        nodes.kill(going)

    fit_disturbed(config, disturb)
    found = read_events(store)
    (leave,) = [event for event in found if event["kind"] == "leave"]
    assert leave["committed"] == leave["step"]
    restored = [event["step"] for event in found if event["kind"] == "restore"]
    assert restored == [leave["step"]]
    assert worlds(store) == [2, 1]
    assert [row[:2] for row in rows(store)] == [(k, 8 * k) for k in range(1, STEPS + 1)]
    first = [e["time"] for e in found if e["kind"] == "first_step"]
    print(f"left at step {leave['step']}; {first[1] - leave['time']:.1f} s to the next step")


@pytest.mark.chaos
def test_workers_that_come_are_used_and_no_step_is_lost(nodes: Nodes, tmp_path: Path) -> None:
    nodes.add()
    config = tiny(
        "base", tmp_path, "grown", workers="1:2", steps=200, valid_examples=0,
        checkpoint_interval=1000, precision="fp64",
    )  # fmt: skip
    store = Store.open(config.storage, config.name)

    def disturb() -> None:
        wait_for(store, "first_step", lambda event: True)
        nodes.add()

    fit_disturbed(config, disturb)
    (leave,) = [event for event in read_events(store) if event["kind"] == "leave"]
    assert leave["committed"] == leave["step"]
    assert worlds(store) == [1, 2]
    assert [row[:2] for row in rows(store)] == [(k, 8 * k) for k in range(1, 201)]


@pytest.mark.chaos
def test_a_node_that_is_killed_costs_no_more_than_the_interval(
    nodes: Nodes, tmp_path: Path
) -> None:
    going, _ = nodes.add(), nodes.add()
    config = tiny("base", tmp_path, "killed", workers="1:2", steps=STEPS, valid_examples=0)
    store = Store.open(config.storage, config.name)

    def disturb() -> None:
        wait_for(store, "commit", lambda event: event["step"] >= 14)
        nodes.kill(going)

    fit_disturbed(config, disturb)
    found = read_events(store)
    (restored,) = [event["step"] for event in found if event["kind"] == "restore"]
    assert restored >= 14
    assert worlds(store) == [2, 1]
    failure = next(event for event in found if event["kind"] == "failure")
    first = [e["time"] for e in found if e["kind"] == "first_step"]
    print(
        f"restored step {restored}; {first[1] - failure['time']:.1f} s from the failure's detection to the next step"
    )
