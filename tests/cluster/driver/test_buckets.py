"""Runs in buckets whose keys are renewed while they train, or in which their account may not delete."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raymat.checkpoint.catalog import scan
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.datakit import write_dataset
from tests.support.fault_proxy import FaultProxy
from tests.support.heads import wait_for
from tests.support.kit import rows, starts
from tests.support.paths import ROOT
from tests.support.s3 import KEY, RENEWED, SECRET, S3Server

BATCH = 2
ROTATIONS = 3
LATE_SECONDS = 8.0
"""The second time the old keys are refused this long before the new ones are there."""


@contextmanager
def driver(
    keys: Path, endpoint: str, steps: int, bucket: str, *more: str
) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable, str(ROOT / "jobs" / "base.py"), "--name", "run",
        "--storage", f"s3://{bucket}/runs", "--dataset", f"s3://{bucket}/data",
        "--backgrounds", f"s3://{bucket}/walls", "--backbone", "mobilenetv2", "--device", "cpu",
        "--resolution", "32", "--crop", "32", "--batch-size", str(BATCH), "--steps", str(steps),
        "--checkpoint-interval", str(max(2, steps // 20)), "--log-loss-interval", "1",
        "--valid-examples", "2", "--valid-interval", str(steps // 4), "--epoch-examples", "1000000",
        "--no-spares", *more,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "RAY_ADDRESS": "local",
        "PYTHONPATH": str(ROOT),
        "AWS_SHARED_CREDENTIALS_FILE": str(keys),
        "AWS_ENDPOINT_URL": endpoint,
    }
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def write_keys(file: Path, key: str, secret: str) -> None:
    """As a tool that renews keys does it: whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    new.replace(file)


def prepared(server: S3Server, folder: Path) -> tuple[str, Store, Path]:
    """A new bucket with a dataset, its run as the server's own disk has it, and a file with keys to it."""
    bucket, keys = f"bucket-{time.monotonic_ns()}", folder / "credentials"
    server.store(bucket)
    write_dataset(str(folder), pairs=8)
    pictures = [*folder.glob("data/**/*.*"), *folder.glob("walls/**/*.*")]
    server.fill(bucket, {str(p.relative_to(folder)): p.read_bytes() for p in pictures})
    write_keys(keys, KEY, SECRET)
    return bucket, server.looked_at(bucket), keys


def newest_commit(store: Store) -> int:
    return max((e["step"] for e in read_events(store) if e["kind"] == "commit"), default=0)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("steps", [60, 200])
def test_keys_that_are_renewed_three_times_cost_no_step_and_no_attempt(
    s3_server: S3Server, tmp_path: Path, steps: int
) -> None:
    bucket, seen, file = prepared(s3_server, tmp_path)
    with FaultProxy(s3_server) as proxy:
        proxy.accept(KEY)
        with driver(file, proxy.endpoint, steps, bucket) as process:
            for number, (key, secret) in enumerate(list(RENEWED.items())[:ROTATIONS]):
                reached = steps * (number + 1) // (ROTATIONS + 2)
                wait_for(lambda reached=reached: newest_commit(seen) >= reached, 300)  # type: ignore[misc]
                proxy.accept(key, status=400 if number == 2 else 403, code="ExpiredToken")
                time.sleep(LATE_SECONDS if number == 1 else 0)
                write_keys(file, key, secret)
            output, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert proxy.counts["not accepted"] >= ROTATIONS
    assert f"complete: step {steps} of {steps}" in output
    assert [start["attempt"] for start in starts(seen)] == [1]
    assert [e for e in read_events(seen) if e["kind"] in ("failure", "skip", "replaced")] == []
    assert [row[:2] for row in rows(seen)] == [(k, k * BATCH) for k in range(1, steps + 1)]
    for secret in (SECRET, *RENEWED.values()):
        assert secret not in output + errors


def deletions_refused(request: Any) -> tuple[int, str] | None:
    bulk = request.method == "POST" and "delete" in request.path
    return (403, "AccessDenied") if bulk or request.method == "DELETE" else None


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_an_account_that_may_not_delete_trains_resumes_keeps_everything_and_is_told_once(
    s3_server: S3Server, tmp_path: Path
) -> None:
    bucket, seen, file = prepared(s3_server, tmp_path)
    with FaultProxy(s3_server) as proxy:
        proxy.refuses = deletions_refused
        for steps in (8, 12):
            with driver(file, proxy.endpoint, steps, bucket, "--keep", "1") as process:
                output, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors
            assert f"complete: step {steps} of {steps}" in output
            assert errors.count("s3:DeleteObject") == 1
            assert "Traceback" not in errors
    assert [e["right"] for e in read_events(seen) if e["kind"] == "no_delete"] == (
        ["s3:DeleteObject"] * 2
    )
    assert [e for e in read_events(seen) if e["kind"] in ("failure", "delete")] == []
    assert [status.id.step for status in scan(seen)] == [12, 10, 8, 6, 4, 2]
    assert [row[:2] for row in rows(seen)] == [(k, k * BATCH) for k in range(1, 13)]
