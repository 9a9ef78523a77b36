"""jobs/base.py in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.terminal import hear_interrupts

FLAGS = [
    "--synthetic", "64", "--backbone", "mobilenetv2", "--resolution", "32", "--crop", "32",
    "--batch-size", "2", "--device", "cpu", "--valid-examples", "0", "--log-loss-interval", "1",
    "--checkpoint-interval", "10", "--epoch-examples", "1000000",
]  # fmt: skip


@contextmanager
def driver(storage: Path, steps: int, *more: str) -> Iterator[subprocess.Popen[str]]:
    """jobs/base.py in a process of its own, with a Ray of its own; killed at the end if it still runs."""
    command = [sys.executable, str(ROOT / "jobs" / "base.py"), *FLAGS]
    process = subprocess.Popen(
        [*command, "--storage", str(storage), "--name", "run", "--steps", str(steps), *more],
        env=os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What the driver said to stderr; it ends by itself, with `code`."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return errors
