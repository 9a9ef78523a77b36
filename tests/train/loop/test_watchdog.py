"""Whether the training thread still does anything is seen from beside it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymat.storage.store import Store
from raymat.train.loop.attempt import supervise
from raymat.train.loop.watchdog import Activity, Heartbeat, Watchdog
from raymat.train.observability.events import EventLog


def test_a_thread_that_hangs_in_a_read_is_told_with_the_line_it_hangs_in() -> None:
    reader, writer = os.pipe()
    found: list[Activity] = []
    seen = threading.Event()

    def stuck(doing: Activity) -> None:
        found.append(doing)
        seen.set()

    def train() -> None:
        heartbeat = Heartbeat()
        with Watchdog(heartbeat, 0.3, stuck):
            heartbeat.record_activity("waiting for a batch", 12)
            hang(reader)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        assert seen.wait(20)
    finally:
        os.write(writer, b"x")
        thread.join(20)
    (doing,) = found
    assert (doing.what, doing.step) == ("waiting for a batch", 12)
    assert doing.stack.splitlines()[-1].endswith(" hang")
    assert "test_watchdog.py:" in doing.stack
    assert 0.3 <= time.time() - doing.since < 60


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_host_hears_of_a_stuck_worker_also_when_the_event_cannot_be_told(
    tmp_path: Path,
) -> None:
    told = threading.Event()

    def fail(event: Any) -> None:
        raise ConnectionError("nobody listens")

    attempt: Any = SimpleNamespace(
        number=1,
        events=EventLog.for_rank(Store.open(str(tmp_path), "run"), 1, 0),
        group=SimpleNamespace(world=SimpleNamespace(rank=0)),
        heartbeat=Heartbeat(),
        config=SimpleNamespace(workers=SimpleNamespace(stuck_after=SimpleNamespace(seconds=0.2))),
    )
    host: Any = SimpleNamespace(
        event=fail,
        attempt_began=lambda number: None,
        register_heartbeat=lambda beat: None,
        stuck=lambda activity: told.set(),
    )
    with supervise(attempt, host):
        assert told.wait(20)


def hang(reader: int) -> None:
    os.read(reader, 1)


def test_a_thread_that_goes_on_is_left_alone() -> None:
    found: list[Activity] = []
    heartbeat = Heartbeat()
    with Watchdog(heartbeat, 2.0, found.append):
        for step in range(12):
            heartbeat.record_activity("training", step)
            time.sleep(0.25)
    time.sleep(2.5)
    assert found == []
