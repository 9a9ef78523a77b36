"""Told to stop, a run commits the step that it is at, and goes on from there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raymat.cluster.driver.launch import fit
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.kit import rows, starts, tiny, wait_for
from tests.support.paths import ROOT
from tests.support.terminal import hear_interrupts

JOBS = ROOT / "jobs"
FLAGS = [
    "--synthetic", "64", "--backbone", "mobilenetv2", "--resolution", "48", "--crop", "32:48",
    "--batch-size", "8", "--device", "cpu", "--valid-examples", "0", "--log-loss-interval", "1",
    "--checkpoint-interval", "100000", "--epoch-examples", "1000000", "--name", "run",
]  # fmt: skip


def driver(storage: Path, steps: int, *more: str) -> subprocess.Popen[str]:
    """`raymat base` in a process of its own, with a Ray of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, str(JOBS / "base.py"), *FLAGS, "--storage", str(storage)]
    return subprocess.Popen(
        [*command, "--steps", str(steps), *more],
        env=environment | {"RAY_ADDRESS": "local", "PYTHONPATH": str(JOBS.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.chaos),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.chaos),
    ],
)
def test_a_driver_that_is_told_to_stop_has_the_step_committed(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    store = Store.open(str(tmp_path), "run")
    process = driver(tmp_path, 100_000)
    try:
        wait_for(store, "first_step", lambda event: True)
        if number == signal.SIGTERM:
            process.send_signal(number)
        else:  # as a terminal does, to all of its processes
            os.killpg(process.pid, number)
        errors, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == code, errors
    last = errors.strip().splitlines()[-1]
    found = re.fullmatch(
        rf"raymat: stopped: the driver was told to stop by {number.name}: the workers left after step "
        r"(\d+), step (\d+) is committed; the same command goes on from there",
        last,
    )
    assert found, last
    assert found[1] == found[2]
    (end,) = [event for event in read_events(store) if event["kind"] == "end"]
    assert end["outcome"] == "left"
    assert rows(store)[-1][0] == int(found[1])
    assert "Traceback" not in errors


HOOKED = """
import os, signal, subprocess, sys
from raymat.cluster.driver.stop_signals import starting_processes
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
shown = ["sh", "-c", "grep SigIgn /proc/self/status"]
try:
    with starting_processes():
        subprocess.run(shown, preexec_fn=int)  # forks
        print("forgotten", flush=True)
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGHUP) is signal.SIG_DFL)
"""


def test_a_ctrl_c_in_a_hook_is_not_forgotten_and_processes_outlive_a_hang_up() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HOOKED], cwd=ROOT, capture_output=True, text=True,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    ignored, *rest = done.stdout.splitlines()
    assert int(ignored.split()[1], 16) & 1 << signal.SIGHUP - 1
    assert rest == ["forgotten", "interrupted True"]


@pytest.mark.chaos
def test_a_worker_that_is_told_to_end_commits_first(tmp_path: Path, cluster: None) -> None:
    config = tiny(
        "base", tmp_path, "run", workers="2", valid_examples=0, checkpoint_interval=1000, steps=80
    )
    store = Store.open(config.storage, config.name)

    def end() -> None:
        wait_for(store, "first_step", lambda event: True)
        os.kill(starts(store)[0]["ranks"][1]["pid"], signal.SIGTERM)

    thread = threading.Thread(target=end)
    thread.start()
    fit(config)
    thread.join()
    (leave,) = [event for event in read_events(store) if event["kind"] == "leave"]
    assert leave["committed"] == leave["step"]
    assert [row[:2] for row in rows(store)] == [(k, 8 * k) for k in range(1, 81)]
