"""What several workers say of mattes that look wrong: one line for each kind, with the count of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raymat.data.batch import Doubt, MicroBatch
from raymat.distributed.world import World
from raymat.storage.store import Store
from raymat.train.observability.events import EventLog, read_events
from raymat.train.observability.fault_reports import MatteReport

EMPTY = np.zeros((0, 4, 4, 3), np.uint8)


def batch(*doubts: tuple[str, str]) -> MicroBatch:
    found = tuple(Doubt(*doubt) for doubt in doubts)
    return MicroBatch(0, (), EMPTY, EMPTY[..., 0], EMPTY, (), True, looked=5, doubts=found)


def test_one_worker_says_each_kind_with_the_counts_of_all(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    logs = [EventLog(store, 1, f"rank-{rank:05}") for rank in range(3)]
    reports = [MatteReport(log, World(rank, 3)) for rank, log in enumerate(logs)]

    def row() -> None:
        sums = [sum(numbers) for numbers in zip(*(r.numbers() for r in reports), strict=True)]
        for report in reports:
            report.say(sums)

    reports[1].add(batch(("inverted", "b"), ("inverted", "c")))
    reports[2].add(batch(("inverted", "d"), ("hard", "d")))
    row()
    reports[0].add(batch(("inverted", "a"), ("empty", "a")))
    row()
    for log in logs:
        log.close()
    found = [e for e in read_events(store) if e["kind"] == "mattes"]
    said = sorted((e["likely"], e["writer"], e["count"], e["looked"], e["path"]) for e in found)
    assert said == [
        ("empty", "rank-00000", 1, 15, "a"),
        ("hard", "rank-00002", 1, 10, "d"),
        ("inverted", "rank-00001", 3, 10, "b"),
    ]


def test_a_worker_beyond_those_that_can_be_told_apart_breaks_nothing(tmp_path: Path) -> None:
    log = EventLog(Store.open(str(tmp_path), "run"), 1, "rank-00060")
    report = MatteReport(log, World(60, 64))
    report.add(batch(("hard", "a")))
    report.say(report.numbers())
    assert report.numbers()[0] == 5
