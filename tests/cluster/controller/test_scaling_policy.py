"""How many workers are started, and when others are worth a restart."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
import ray
import ray.train

from raymat.cluster.blackboard import Blackboard, SignOfLife
from raymat.cluster.controller.room_log import RoomLog
from raymat.cluster.controller.scaling_policy import RaymatScalingPolicy
from raymat.cluster.driver.launch import fit
from raymat.cluster.nodes import places_on
from raymat.storage.store import Store
from raymat.train.loop.watchdog import Activity
from raymat.train.observability.events import read_events
from tests.support.kit import starts, tiny, wait_for


def test_workers_fit_whole_into_what_a_node_has() -> None:
    node = {"CPU": 16.0, "GPU": 4.0}
    assert places_on(node, {"CPU": 1, "GPU": 1}) == 4
    assert places_on(node, {"CPU": 1}, share=0.5) == 8
    assert places_on(node, {"CPU": 0.1}) == 160
    assert places_on({"CPU": 16.0}, {"CPU": 1, "GPU": 1}) == 0


def test_a_run_without_room_says_so_and_not_what_its_last_workers_did(
    cluster: None, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path), "run")
    board = Blackboard.start()
    activity = Activity("waiting for storage", 372, 100.0)
    board.sign(0, SignOfLife("last", "node", 1, activity))
    scaling = ray.train.ScalingConfig(num_workers=(64, 99), resources_per_worker={"CPU": 1})
    policy = RaymatScalingPolicy(scaling, board, RoomLog(store, 64), spares=False, grows=False)
    for _ in range(2):
        policy.make_decision_for_non_running_worker_group()
    news = board.news(0)
    assert news.doing is not None
    assert re.fullmatch(
        r"waiting for machines: there is room for \d workers of at least 64", news.doing.what
    )
    assert news.doing.step == 372
    told = wait_for(store, "room", lambda event: event["least"] == 64)
    assert f"there is room for {told['workers']} workers" in news.doing.what
    assert [event["kind"] for event in read_events(store)] == ["room"]
    board.forget_workers()
    assert board.news(0).doing is None
    board.stop()


@pytest.mark.chaos
def test_places_that_somebody_else_has_are_not_waited_for(tmp_path: Path, cluster: None) -> None:
    @ray.remote(num_cpus=2.4)
    class Other:
        def ready(self) -> None:
            return

    other = Other.remote()
    ray.get(other.ready.remote())
    config = tiny("base", tmp_path, "run", workers="1:4", valid_examples=0)
    store = Store.open(config.storage, config.name)

    def go_away() -> None:
        wait_for(store, "start", lambda event: True)
        ray.kill(other)  # reading needs a core of its own

    thread = threading.Thread(target=go_away)
    thread.start()
    fit(config)
    thread.join()
    assert starts(store)[0]["world"] == 3
