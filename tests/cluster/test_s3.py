"""A run whose storage is a bucket, with credentials from the environment alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit import rows, starts
from s3 import SECRET, S3Server

from raymat.checkpoint.find import scan
from raymat.train.events import read_events

PROJECT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_in_a_bucket_resumes_and_keeps_its_secrets(
    s3_server: S3Server, short_tmp: Path
) -> None:
    store = s3_server.store("training", "portraits")
    job = [sys.executable, "jobs/base.py", "--name", "portraits", "--storage", "s3://training/runs"]
    job += ["--synthetic", "16", "--backbone", "mobilenetv2", "--device", "cpu"]
    job += ["--resolution", "32", "--crop", "32", "--batch-size", "4", "--keep", "2"]
    job += ["--checkpoint-interval", "2", "--log-loss-interval", "1", "--valid-examples", "0"]
    environment = os.environ | s3_server.environment
    environment |= {"RAY_ADDRESS": "local", "RAY_TMPDIR": str(short_tmp)}
    environment |= {"PYTHONPATH": str(PROJECT)}
    for steps in (3, 6):
        done = subprocess.run(
            [*job, "--steps", str(steps)],
            cwd=PROJECT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert f"s3://training/runs/portraits is complete: step {steps} of {steps}" in done.stdout
        assert SECRET not in done.stdout + done.stderr
    assert [start["attempt"] for start in starts(store)] == [1, 2]
    restored = [event["step"] for event in read_events(store) if event["kind"] == "restore"]
    assert restored == [3]
    assert [row[0] for row in rows(store)] == [1, 2, 3, 4, 5, 6]
    assert [status.id.step for status in scan(store)] == [6, 4]
    for file in (s3_server.folder / "training").rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()
