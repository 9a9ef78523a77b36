"""Machines that come and go, as several nodes of a real Ray cluster on this one: drained with a deadline, killed, added."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.kit import rows, tiny, wait_for
from tests.support.nodes import Nodes, fit_disturbed, worlds

STEPS = 60


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
