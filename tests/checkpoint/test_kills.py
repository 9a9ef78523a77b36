"""SIGKILL at random moments of writing and pruning: what was announced stays, what is found is
whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.snapshot import Snapshot
from raymat.storage.store import Store
from tests.support.paths import ROOT, SUPPORT

pytestmark = pytest.mark.slow


class Writers:
    """Starts writers and kills them."""

    def __init__(self, announcements: Path) -> None:
        script = SUPPORT / "writer_to_kill.py"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.announcements = announcements
        announcements.touch()
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )  # fmt: skip

    def run_and_kill(self, url: str, attempt: int, options: dict[str, Any], seconds: float) -> None:
        """Let a writer announce one commit, then work on for `seconds`, then kill it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        before = len(self.announced())
        self.process.stdin.write(f"{url} {attempt} {self.announcements} {json.dumps(options)}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        deadline = time.monotonic() + 30
        while len(self.announced()) == before:
            assert time.monotonic() < deadline, "the writer commits nothing"
            time.sleep(0.002)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        assert self.process.stdout.readline() == "dead\n"

    def announced(self) -> list[CheckpointId]:
        lines = self.announcements.read_text().splitlines()
        return [CheckpointId(*map(int, line.split())) for line in lines]

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    writers = Writers(tmp_path / "announced")
    yield writers
    writers.stop()


def _check(store: Store, writers: Writers) -> None:
    found = newest(store, "r")
    assert found is not None
    checkpoint, snapshot = found
    assert checkpoint >= writers.announced()[-1]
    assert _is_of_step(snapshot, checkpoint.step)
    assert all(
        status.state == "torn" or len(status.files) == 5 for status in scan(store, manifests=9)
    )


def _is_of_step(snapshot: Snapshot, step: int) -> bool:
    sizes = {name: tensor.numel() for name, tensor in snapshot.tensors.items()}
    assert sizes == {f"t{i}": 20_000 + i for i in range(4)}
    right = [torch.all(snapshot.tensors[f"t{i}"] == step * 100 + i) for i in range(4)]
    return all(right) and snapshot.extra == {"step": step}


def test_a_local_writer_killed_at_random_moments_loses_no_commit(
    tmp_path: Path, writers: Writers
) -> None:
    store = Store.open(str(tmp_path / "runs"), "run")
    draws, hit = random.Random(17), 0
    for attempt in range(30):
        writers.run_and_kill(str(tmp_path / "runs"), attempt, {}, draws.uniform(0, 0.05))
        _check(store, writers)
        half = any("/.tmp-" in info.path for info in store.list(temporary=True))
        hit += half or scan(store)[0].state == "torn"
    # The kills are no test if they never strike in the middle of a checkpoint.
    assert hit >= 10


def test_an_s3_writer_killed_at_random_moments_loses_no_commit(
    s3_server: Any, writers: Writers
) -> None:
    store = s3_server.store("killed")
    draws = random.Random(18)
    for attempt in range(5):
        writers.run_and_kill("s3://killed/runs", attempt, s3_server.options, draws.uniform(0, 0.2))
        _check(store, writers)
