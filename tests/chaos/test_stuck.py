"""Workers that are not dead but stand still: found, named, and recovered from like a death."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymat.cluster.driver.launch import fit
from raymat.errors import ClusterError
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.kit import rows, starts, tiny, wait_for


def beside(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.chaos
def test_a_suspended_worker_is_found_within_fifteen_seconds_and_named(
    tmp_path: Path, cluster: None
) -> None:
    config = tiny("base", tmp_path, "run", workers="2", valid_examples=0)
    store = Store.open(config.storage, config.name)
    suspended: list[float] = []

    def suspend() -> None:
        wait_for(store, "commit", lambda event: event["step"] >= 14)
        victim = starts(store)[0]["ranks"][1]
        suspended.append(time.time())
        os.kill(victim["pid"], signal.SIGSTOP)

    thread = beside(suspend)
    fit(config)
    thread.join()
    found = read_events(store)
    (failure,) = [event for event in found if event["kind"] == "failure"]
    first = [event["time"] for event in found if event["kind"] == "first_step"]
    print(
        f"found after {failure['time'] - suspended[0]:.1f} s, "
        f"next step after {first[1] - suspended[0]:.1f} s"
    )
    assert failure["time"] - suspended[0] < 15
    assert "1" in failure["ranks"]
    last = failure["last"]["1"]
    assert last["pid"] == starts(store)[0]["ranks"][1]["pid"]
    assert last["silent"] > 4
    assert last["stack"]
    assert [row[:2] for row in rows(store)] == [(k, 8 * k) for k in range(1, 41)]


def suspend_readers(until: threading.Event) -> list[int]:
    """SIGSTOP every process of this user's Ray that reads batches, as soon as one comes up."""
    stopped: list[int] = []
    while not until.wait(0.05):
        listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True)
        for line in listed.stdout.splitlines():
            pid, _, name = line.split(None, 2)
            if name.startswith("ray::") and "Read" in name and int(pid) not in stopped:
                os.kill(int(pid), signal.SIGSTOP)
                stopped.append(int(pid))
    return stopped


@pytest.mark.chaos
def test_reads_that_never_end_are_named_and_end_the_run_when_it_helps_nothing(
    tmp_path: Path, cluster: None
) -> None:
    config = tiny(
        "base", tmp_path, "run", workers="1", valid_examples=0, steps=4000, stuck_after="8s"
    )
    store = Store.open(config.storage, config.name)
    ended = threading.Event()
    stopped: list[int] = []

    def suspend() -> None:
        wait_for(store, "commit", lambda event: event["step"] >= 14)
        stopped.extend(suspend_readers(ended))

    thread = beside(suspend)
    try:
        with pytest.raises(
            ClusterError, match="stood still waiting for a batch after step"
        ) as caught:
            fit(config)
    finally:
        ended.set()
        thread.join()
        for pid in stopped:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    print(caught.value)
    stuck: list[dict[str, Any]] = [e for e in read_events(store) if e["kind"] == "stuck"]
    assert len(stuck) >= 3
    assert {event["what"] for event in stuck} == {"waiting for a batch"}
    assert all("feed.py" in event["stack"] or "_batches" in event["stack"] for event in stuck)
