"""What several test folders share: tiny runs, and a killer of their workers."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymat.config.run import RunConfig, build
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.observability.progress import Progress

TINY: dict[str, dict[str, Any]] = {
    "base": {"resolution": 48, "crop": "32:48", "batch_size": 8},
    "refine": {
        "resolution": 96,
        "crop": "64:96",
        "batch_size": 4,
        "refine_sample_pixels": 1600,
    },
}

PROGRESS = Progress(
    stage="base",
    step=120,
    total_steps=800,
    examples_left=5440,
    examples_per_second=15.2,
    loss=0.4312,
    valid_loss=None,
    commit_step=112,
    commit_time=1000.0,
    world=2,
    attempt=2,
)
"""A run of two workers in its second attempt, 8 steps after its newest commit."""


def tiny(stage: Any, storage: Path | str, name: str, **options: Any) -> RunConfig:
    """A run of seconds: mobilenetv2 on procedural pairs, on the CPU."""
    defaults = TINY[stage] | {
        "synthetic": 64,
        "backbone": "mobilenetv2",
        "storage": str(storage),
        "name": name,
        "device": "cpu",
        "steps": 40,
        "checkpoint_interval": 7,
        "valid_interval": 20,
        "valid_examples": 6,
        "log_loss_interval": 1,
        "log_images_interval": 20,
        "epoch_examples": 10**6,
    }
    return build(stage, defaults | options)


def starts(store: Store) -> list[dict[str, Any]]:
    """The run's `start` events, oldest first."""
    return [event for event in read_events(store) if event["kind"] == "start"]


def rows(store: Store, kind: str = "train") -> list[tuple[Any, ...]]:
    """The run's metrics as (step, examples, loss, digest), by step."""
    return [
        (row["step"], row["examples"], row["loss"], row.get("digest"))
        for row in read_metrics(store)
        if row["kind"] == kind
    ]


def wait_for(
    store: Store, kind: str, condition: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The first event of this kind for which the condition holds, within four minutes: other tests may have the cores."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for event in read_events(store):
            if event["kind"] == kind and condition(event):
                return event
        time.sleep(0.2)
    raise AssertionError(f"no such {kind} event came within 240 s")


class Killer(threading.Thread):
    """Kills one worker of a run with SIGKILL, `kills` times, each time in a newer attempt.

    The moment is drawn from `seed`: some seconds after the attempt began (one in four) or after
    its first step, or, every second time, the instant at which a checkpoint folder without all its
    manifests is seen. Only processes that the run's own events name are killed.
    """

    def __init__(self, store: Store, seed: int, kills: int, latest: float = 4.0) -> None:
        super().__init__(daemon=True)
        self.killed: list[tuple[int, int, str]] = []
        self._folder = Path(store.url.removeprefix("file://"))
        self._store = store
        self._random = random.Random(seed)
        self._kills = kills
        self._latest = latest
        self._ended = threading.Event()

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        attempt = 0
        for number in range(self._kills):
            start = self._newer_start(attempt)
            if start is None:
                return
            attempt = start["attempt"]
            victim = self._random.choice(start["ranks"])
            if (number + self._random.randrange(2)) % 2:
                moment = self._while_writing(attempt)
            else:
                moment = self._some_time(attempt)
            if moment is None:
                return
            try:
                os.kill(victim["pid"], signal.SIGKILL)
            except ProcessLookupError:
                return  # the run ended first
            self.killed.append((attempt, victim["rank"], moment))

    def _newer_start(self, attempt: int) -> dict[str, Any] | None:
        while not self._ended.wait(0.05):
            newer = [event for event in starts(self._store) if event["attempt"] > attempt]
            if newer:
                return newer[-1]
        return None

    def _some_time(self, attempt: int) -> str | None:
        kind = self._random.choice(["start", "first_step", "first_step", "first_step"])
        seconds = self._random.uniform(0, self._latest)
        while not any(
            event["kind"] == kind and event["attempt"] == attempt
            for event in read_events(self._store)
        ):
            if self._ended.wait(0.05):
                return None
        return None if self._ended.wait(seconds) else f"{seconds:.2f} s after {kind}"

    def _while_writing(self, attempt: int) -> str | None:
        while not self._ended.is_set():
            for folder in (self._folder / "checkpoints").glob(f"step-*-a{attempt:03d}"):
                names = os.listdir(folder)
                manifests = [name for name in names if name.startswith("manifest-")]
                world = int(manifests[0].split("-of-")[1].split(".")[0]) if manifests else 2
                if len(manifests) < world:
                    return f"while {folder.name} was being written"
            time.sleep(0.001)
        return None


def undisturbed(stage: Any, storage: Path, world: int, **options: Any) -> Store:
    """A run that nobody touched; made once per folder."""
    from raymat.cluster.driver.launch import fit

    name = f"{stage}-{world}-undisturbed"
    config = tiny(stage, storage, name, workers=str(world), **options)
    fit(config)
    return Store.open(config.storage, config.name)


def killed_run(
    stage: Any, storage: Path, world: int, seed: int, kills: int, **options: Any
) -> tuple[Store, Killer]:
    """The same run with `kills` workers killed at moments drawn from `seed`; returns its killer too."""
    from raymat.cluster.driver.launch import fit

    name = f"{stage}-{world}-seed{seed}"
    config = tiny(stage, storage, name, workers=str(world), **options)
    store = Store.open(config.storage, config.name)
    killer = Killer(store, seed, kills)
    killer.start()
    try:
        fit(config)
    finally:
        killer.stop()
    print(f"{stage}, {world} workers, seed {seed}: killed {killer.killed}")
    return store, killer
