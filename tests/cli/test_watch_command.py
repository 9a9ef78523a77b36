"""`raymat watch` follows a run to its end, whatever its storage does meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from raymat.analysis.runs.outlook import RunFollower
from raymat.cli.runs.watch_command import screen_lines, status_line
from raymat.storage.store import Store
from raymat.train.observability.events import EventLog
from raymat.train.run.lease.entries import Pace
from raymat.train.run.lease.lease import Lease
from raymat.train.run.lease.process import Owner
from tests.support.events import note
from tests.support.paths import ROOT, TESTS
from tests.support.terminal import hear_interrupts

WATCH = [sys.executable, "-m", "raymat", "watch"]
PACE = Pace(renew=0.2, ttl=20.0, look=0.05, watch=0.2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A run of 16 steps, 9 of which are committed, without a driver."""
    shutil.copytree(TESTS / "kept/recipe-2/run", tmp_path / "runs/run")
    return Store.open(str(tmp_path / "runs"), "run")


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_until_the_driver_is_known_to_live_a_line_says_what_is_waited_for(store: Store) -> None:
    outlook = RunFollower(store).read()
    unclear = dataclasses.replace(
        outlook, summary=dataclasses.replace(outlook.summary, state="unclear")
    )
    line = status_line(unclear, time.time())
    assert line.startswith("base (does its driver live? up to 20 s)  9/16  ")


def test_a_screen_of_80_columns_tells_where_a_run_stands_and_what_happened_last(
    store: Store,
) -> None:
    outlook = RunFollower(store).read()
    now = (outlook.summary.committed or 0.0) + 125
    lines = screen_lines(outlook, now, 79, 10)
    assert lines[0].startswith("run  base  stopped  ")
    assert lines[1:6] == [
        "[################              ]  9/16  56%",
        "loss 0.9139",
        "commit 9, 2 min ago  goodput 71.2%  1 worker, attempt 1",
        "best loss 0.9062 at 8",
        "training 71.2%  restore 23.6%  validation 3.8%  save stall 1.4%",
    ]
    assert lines[-1] == "11-28 18:21:47  removed step-000000003-a001: no longer kept"
    assert len(lines) == 10
    assert max(map(len, lines)) <= 79
    assert status_line(outlook, now) == (
        "base stopped  9/16  loss 0.9139  commit 9, 2 min ago  goodput 71.2%  1 worker, attempt 1  "
        "best loss 0.9062 at 8"
    )


def test_between_commits_the_step_is_reckoned_by_the_pace_of_the_last_two(store: Store) -> None:
    outlook = RunFollower(store).read()
    assert outlook.step_seconds == pytest.approx(0.232, abs=0.001)
    training = dataclasses.replace(
        outlook.summary, state="training", committed=1000.0, active=1000.95
    )
    outlook = dataclasses.replace(outlook, summary=training)
    assert outlook.step == 9 + 4
    assert outlook.seconds_left == pytest.approx(3 * 0.232, abs=0.01)
    later = dataclasses.replace(outlook, summary=dataclasses.replace(training, active=9e9))
    assert later.step == 15


def test_a_run_is_followed_in_a_pipe_through_a_storage_that_goes_away_to_its_end(
    store: Store, tmp_path: Path
) -> None:
    said: list[str] = []
    store.anchor("fff602316f884334b923489852f596a1", "run.json")  # as drivers do
    elsewhere = dataclasses.replace(Owner.me(), machine=None)
    with Lease.acquire(store, pace=PACE, owner=elsewhere) as lease:
        command = [*WATCH, store.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as watch:
            try:
                assert watch.stdout is not None
                threading.Thread(target=lambda: said.extend(watch.stdout), daemon=True).start()  # type: ignore[arg-type]
                until(lambda: len(said) == 1)
                EventLog.for_driver(store).emit(note("longer", step=9, examples=36))
                until(lambda: len(said) == 2)
                away, there = tmp_path / "away", tmp_path / "runs"
                there.rename(away)
                until(lambda: len(said) >= 3 and "no answer for" in said[2])
                away.rename(there)
                log = EventLog.for_rank(store, 1, 0)
                log.emit(note("end", outcome="complete", reason="the run's length", step=16))
                assert watch.wait(60) == 0
                until(lambda: len(said) >= 5)
            finally:
                watch.kill()
        assert lease.lost is None
    assert said[0].startswith("base ")
    assert said[1].endswith("the run had ended after 36 examples (step 9), and goes on\n")
    assert said[3].endswith("the run is complete after step 16: the run's length\n")
    assert said[-1].startswith("base complete  9/16")


def test_ctrl_c_leaves_the_terminal_as_it_was(store: Store) -> None:
    written = b""
    master, slave = pty.openpty()
    with Lease.acquire(store, pace=PACE, owner=dataclasses.replace(Owner.me(), machine=None)):
        watch = subprocess.Popen(
            [*WATCH, store.url],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            preexec_fn=hear_interrupts,
        )
        os.close(slave)
        try:
            while b"9/16" not in written:
                written += _read_soon(master)
            watch.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):  # as which the end of a terminal is reported
                while data := _read_soon(master):
                    written += data
            assert watch.wait(60) == 130
        finally:
            watch.kill()
            watch.wait()
            os.close(master)
    assert written.startswith(b"\x1b[?1049h\x1b[?25l")
    assert written.endswith(b"\x1b[?25h\x1b[?1049lraymat: interrupted\r\n")


def _read_soon(terminal: int) -> bytes:
    assert select.select([terminal], [], [], 60)[0], "nothing more was written"
    return os.read(terminal, 65536)


def test_what_is_no_run_is_not_watched(store: Store, raymat: Callable[..., object]) -> None:
    code, _, errors = raymat("watch", f"{store.url}-not")  # type: ignore[misc]
    assert (code, len(errors)) == (2, 1)
    assert "there is no run to watch at" in errors[0]
