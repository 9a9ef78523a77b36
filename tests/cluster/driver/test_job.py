"""`ray job submit ... jobs/base.py`: a real head that asks for a token, a bucket whose keys only the head's machine has."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from raymat.checkpoint.catalog import scan
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.heads import RAY, standing_head, wait_for
from tests.support.kit import rows, starts
from tests.support.paths import ROOT
from tests.support.s3 import SECRET, S3Server

PROJECT = ROOT
BATCH, STEPS = 4, 20


@dataclass
class Head:
    """A Ray head of this test's own: its dashboard's address, and the environment to reach it."""

    address: str
    environment: dict[str, str]

    def submit(self, *arguments: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of the project; the output is the job's log."""
        command = [RAY, "job", "submit", "--address", self.address, "--working-dir", str(PROJECT)]
        command += [] if wait else ["--no-wait"]
        # A head listens before the agent that starts jobs has come up, and says so.
        return wait_for(lambda: self._submitted([*command, "--", *arguments]), 90)

    def _submitted(self, command: list[str]) -> subprocess.CompletedProcess[str] | None:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=400
        )
        return None if "No available agent" in done.stderr else done


@pytest.fixture
def head(s3_server: S3Server) -> Iterator[Head]:
    with standing_head(environment=s3_server.environment) as head:
        yield Head(f"http://127.0.0.1:{head.dashboard_port}", head.environment)


def driver_pid(store: Store, number: int) -> int | None:
    launches = [event for event in read_events(store) if event["kind"] == "launch"]
    return int(launches[number]["pid"]) if len(launches) > number else None


def newest_commit(store: Store) -> int:
    return max((e["step"] for e in read_events(store) if e["kind"] == "commit"), default=0)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_submitted_run_whose_driver_was_killed_resumes_from_its_bucket_and_keeps_its_secrets(
    head: Head, s3_server: S3Server
) -> None:
    job = [sys.executable, "jobs/base.py", "--name", "night", "--storage", "s3://training/runs"]
    job += ["--synthetic", "40", "--backbone", "mobilenetv2", "--device", "cpu"]
    job += ["--resolution", "64", "--crop", "64", "--batch-size", str(BATCH)]
    job += ["--steps", str(STEPS), "--checkpoint-interval", "5", "--log-loss-interval", "1"]
    job += ["--valid-examples", "0", "--workers", "2", "--epoch-examples", "1000000"]
    job += ["--keep", "2", "--no-spares"]
    store = s3_server.store("training", "night")
    seen = s3_server.looked_at("training", "night")

    with pytest.raises(urllib.error.HTTPError) as refused:  # a job needs the head's token
        urllib.request.urlopen(f"{head.address}/api/jobs/")
    assert refused.value.code == 401

    first = head.submit(*job, wait=False)
    assert first.returncode == 0, first.stdout + first.stderr
    # Other tests may have the cores: a minute alone, several beside three of them.
    pid = wait_for(lambda: driver_pid(seen, 0), 240)
    wait_for(lambda: newest_commit(seen) >= 5, 300)
    os.kill(pid, signal.SIGKILL)
    reached = newest_commit(seen)
    assert reached < STEPS

    second = head.submit(*job)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"s3://training/runs/night is complete: step {STEPS} of {STEPS}" in second.stdout
    restored = [event["step"] for event in read_events(store) if event["kind"] == "restore"]
    assert len(restored) == 1
    assert restored[0] >= reached
    assert [start["attempt"] for start in starts(store)] == [1, 2], second.stdout
    assert [row[:2] for row in rows(store)] == [(k, k * BATCH) for k in range(1, STEPS + 1)]
    assert [status.id.step for status in scan(store)] == [20, 15]
    assert SECRET not in first.stdout + first.stderr + second.stdout + second.stderr
    for file in seen.list():
        assert SECRET.encode() not in seen.read(file.path)
