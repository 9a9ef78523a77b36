"""The batch file for Slurm, with stand-ins for Slurm's programs: told to leave it commits and queues itself again, and goes on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.heads import wait_for
from tests.support.paths import ROOT

pytestmark = pytest.mark.chaos

STAND_INS = {
    # Starts the step on this machine, whatever the node; as srun since 22.05, it has one CPU unless it is told of more.
    "srun": '[[ "$*" == *--cpus-per-task=2* ]] || exit 9; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    # Two nodes; and who asks to be queued again is written down.
    "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" "$HOST_NAME" "$HOST_NAME"; else echo "$@" >> "$HOME/queued"; fi',
}
FLAGS = [
    "--synthetic", "64", "--backbone", "mobilenetv2", "--resolution", "48", "--crop", "32:48", "--batch-size", "8",
    "--device", "cpu", "--valid-examples", "0", "--checkpoint-interval", "5", "--epoch-examples", "1000000",
    "--name", "run", "--steps", "150",
]  # fmt: skip


@pytest.fixture
def slurm() -> Iterator[Path]:
    """A home with Slurm's stand-ins, short enough for Ray's sockets."""
    home = Path(tempfile.mkdtemp(prefix="sl"))
    for name, body in STAND_INS.items():
        (home / name).write_text(f"#!/bin/bash\n{body}\n")
        (home / name).chmod(0o755)
    yield home
    shutil.rmtree(home, ignore_errors=True)


def submit(home: Path, job: int) -> subprocess.Popen[str]:
    environ = {
        "HOME": str(home),
        "PATH": f"{home}:{os.environ['PATH']}",
        "HOST_NAME": socket.gethostbyname(socket.gethostname()),
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "RAYMAT_STAGE": "base",
    }
    command = ["bash", str(ROOT / "deploy/slurm.sbatch"), *FLAGS, "--storage", str(home / "runs")]
    log = (home / "log").open("a")
    return subprocess.Popen(command, env=environ, stdout=log, stderr=log, text=True)


def steps(home: Path) -> list[int]:
    """The committed steps, in their order."""
    events = read_events(Store.open(str(home / "runs"), "run"))
    return [event["step"] for event in events if event["kind"] == "commit"]


def test_a_job_that_is_told_to_leave_commits_is_queued_again_and_goes_on(slurm: Path) -> None:
    job = submit(slurm, os.getpid())
    try:
        wait_for(lambda: steps(slurm), 120)
        job.send_signal(signal.SIGTERM)
        code = job.wait(120)
        said = (slurm / "log").read_text()
        assert code == 143, said
        assert (slurm / "queued").read_text() == f"requeue {os.getpid()}\n"
        left = steps(slurm)[-1]
        assert 5 <= left < 150
        job = submit(slurm, os.getpid() + 1)
        assert job.wait(180) == 0, (slurm / "log").read_text()
        assert steps(slurm)[-1] == 150
        events = read_events(Store.open(str(slurm / "runs"), "run"))
        assert [event["step"] for event in events if event["kind"] == "restore"] == [left]
        assert (slurm / "queued").read_text().count("requeue") == 1
        assert list((slurm / ".ray").glob("slurm-*")) == []
    finally:
        if job.poll() is None:
            job.send_signal(signal.SIGTERM)
            job.wait(60)
