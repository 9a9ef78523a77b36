"""What a run with many faults leaves in storage, made without training: for whoever reads runs.

python -m tests.support.troubled_run FOLDER NAME [FAULTS] [COMMITS]
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.distributed.world import World
from raymat.storage.store import Store
from raymat.train.observability.metrics_log import segment_path
from raymat.train.observability.tensorboard_log import TensorBoardLog

BEGIN = 1_795_000_000.0
STEPS = 100
"""Between two commits."""


class TroubledRun:
    """Writes a run's files. Times are drawn from a seed, which also makes its losses."""

    def __init__(self, folder: Path, name: str, seed: int = 0, config: Any = None) -> None:
        self.store = Store.open(str(folder), name)
        self._draw = random.Random(seed)
        self._events: list[dict[str, Any]] = []
        self._now = BEGIN
        self._resumed = 0
        self._config = {"stage": "refine", "name": name, "best_metric": "loss"} | (config or {})

    def write(self, faults: int, commits: int, complete: bool = True) -> Store:
        """Write all of it: `commits` checkpoints of 100 steps each, and `faults` between them."""
        stored: dict[str, Any] = {"format": 1, "run_id": "id", "created": "", "versions": {}}
        stored["listing"] = {"synthetic": 20, "digest": "synthetic-20"}
        self.store.write("run.json", json.dumps(stored | {"config": self._config}).encode())
        total = commits * STEPS
        self.add("launch", writer="driver", pid=7, host="head", config={"workers": "2:8"})
        share = max(1, commits // (faults + 1))
        done, attempt = 0, 0
        while done < commits:
            attempt += 1
            last = attempt > faults
            until = commits if last else min(commits, done + share)
            done = self._attempt(attempt, done, until, total)
            if not last:
                self._end_attempt(attempt, done)
        if complete:
            self.add("end", attempt, outcome="complete", reason="the run's length", step=total)
        lines = "".join(json.dumps(event) + "\n" for event in self._events)
        self.store.write("events/a001-rank-00000-0badcafe-00000.jsonl", lines.encode())
        self._write_metrics(total)
        return self.store

    def add(self, kind: str, attempt: int | None = None, after: float = 0.0, **fields: Any) -> None:
        """Let something happen `after` so many seconds."""
        self._now += after
        place = {"time": self._now, "attempt": attempt, "writer": "rank-00000", "kind": kind}
        self._events.append(place | fields)

    def _attempt(self, attempt: int, done: int, until: int, total: int) -> int:
        world = self._draw.choice([4, 6, 8, 8])
        ranks = [{"rank": r, "pid": 9, "host": f"spot-{r}"} for r in range(world)]
        about = {"stage": "refine", "total_steps": total, "device": "cuda", "ranks": ranks}
        self.add("start", attempt, 6.0, world=world, **about)
        if done:
            name = f"step-{self._resumed:09d}-a{attempt - 1:03d}"
            self.add("restore", attempt, 2.0, checkpoint=name, step=self._resumed, seconds=1.8)
        self.add("first_step", attempt, 7.0, step=done * STEPS + 1, seconds=9.0, batch=7.5)
        pace = 0.5 * 8 / world
        for number in range(done + 1, until + 1):
            step = number * STEPS
            self.add(
                "commit",
                attempt,
                STEPS * pace,
                checkpoint=f"step-{step:09d}-a{attempt:03d}",
                step=step,
                seconds=1.5,
                stall=0.02,
                bytes=123_456_789,
            )
            if number % 10 == 0:
                loss = self._loss(step) * 1.1
                best = self._draw.random() < 0.5
                about = {"metrics": {"sad": 9.0, "mse": 12.0}, "seconds": 20.0, "place": "loop"}
                self.add("validation", attempt, 20.0, step=step, loss=loss, **about, waited=0.0, best=best)  # fmt: skip
        return until

    def _end_attempt(self, attempt: int, done: int) -> None:
        """Lose a worker without notice, with some steps, or leave after a notice, without."""
        step = done * STEPS + self._draw.randrange(5, STEPS - 5)
        self._now += (step - done * STEPS) * 0.6
        self._resumed = done * STEPS
        if self._draw.random() < 0.5:
            silent = self._draw.choice([0.4, 1.5, 11.0])
            sign = {"host": "spot-3", "pid": 9, "silent": silent, "doing": "training", "step": step}
            ranks = {"3": "ActorDiedError: the worker's machine is gone"}
            self.add("failure", attempt, silent, writer="driver", ranks=ranks, last={"3": sign})
        else:
            reason = "node 1f is drained: spot instance is about to be reclaimed"
            self.add("notice", attempt, 0.0, reason=reason, deadline=None, step=step)
            self.add("leave", attempt, 4.0, reason=reason, step=step, committed=step)
            self._resumed = step

    def _loss(self, step: int) -> float:
        return 0.012 + 0.4 / (1 + step / 300) + self._draw.gauss(0, 0.004)

    def _write_metrics(self, total: int) -> None:
        rows = []
        for step in range(10, total + 1, 10):
            place = {"step": step, "examples": 4 * step, "epoch": step / 1e5, "time": BEGIN + step}
            speed = {"step_seconds": 0.5, "examples_per_second": self._draw.gauss(15, 1)}
            speed["data_wait"] = abs(self._draw.gauss(0.03, 0.02))
            rates = {"backbone": 5e-5, "aspp": 1e-4, "refiner": 3e-4 * (1 - step / total / 2)}
            row = {"kind": "train", "loss": self._loss(step), "lr": rates, "digest": "0"}
            rows.append(place | row | speed)
            if step % (10 * STEPS) == 0:
                rows.append(
                    place | {"kind": "valid", "loss": self._loss(step) * 1.1, "metrics": {}}
                )
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.store.write(segment_path(1, total, 99), text.encode())
        for step in range(max(STEPS, total - 2 * STEPS), total + 1, STEPS):
            validations = {"validations": [{"step": total, "loss": 0.0181}]}
            snapshot = Snapshot.take(step, {"model/a": torch.zeros(8)}, validations)
            write_share(self.store, CheckpointId(step, 99), snapshot, World(0, 1), "id")
        log = TensorBoardLog(self.store, 1)
        y, x = np.mgrid[0:128, 0:660]
        disc = np.hypot(y - 64, (x % 132) - 66) < 45
        log.images(total, {"train_pred_pha": (disc * 255).astype(np.uint8)})
        colours = np.stack([x % 256, y * 2, np.where(disc, 200, 60)], -1).astype(np.uint8)
        log.images(total, {"train_pred_com": colours})
        log.cut(total)
        log.flush(total)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[3:]]
    faults, commits = (*numbers, 20, 200)[:2] if numbers else (20, 200)
    TroubledRun(Path(sys.argv[1]), sys.argv[2]).write(faults, commits)
