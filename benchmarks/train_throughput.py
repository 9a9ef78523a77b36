"""Training end to end from 4K pictures on disk: examples a second, and how long steps wait for data, beside a plain loader.

raymat's command trains MattingBase (mobilenetv2) on a CPU from 4K JPEGs with PNG alphas, with a Ray of its own. Beside it, on the
same files and cores and with the same network and batch, what one writes otherwise: a DataLoader whose processes decode with
Pillow at full size, warp, crop, jitter and convert as the reference does, and a loop with torch's Adam. They take turns. The waits
are those of raymat's own rows, and of the loop's clock. Steps on a CPU are slow, so the examples a second of that loader alone are
told too: with a quick GPU it is they that count.

With --memory a run of many tiny steps shows how the memory that only one process has (RssAnon) grows, by the kind of process, and
ends with status 1 if it is not flat.

    python benchmarks/train_throughput.py [--steps 60] [--rounds 2] [--resolution 256]
    python benchmarks/train_throughput.py --memory [--steps 5000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data_path import SIZES, jitter_and_convert, pillow_sample, write_dataset
from start_systems.process_times import family
from step_launches import RATES, network_of
from torch.utils.data import DataLoader, Dataset

from raymat.config.values import Range
from raymat.data.dataset.source import FolderSource
from raymat.data.sample_order import SampleOrder
from raymat.model.matting import set_dropout_seeds
from raymat.storage.store import Store
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.optim.losses import base_loss

BATCH = 4
WARM_UP = 10
"""Steps that are not counted: processes start, and queues fill."""
LEVEL = 2.0
"""MB in 1,000 steps: more is not flat."""


@dataclass(frozen=True)
class Pace:
    """How a training went, after its first steps."""

    examples: float
    """A second."""
    waiting: float
    """Share of the time."""


def command(folder: Path, steps: int, options: dict[str, Any]) -> list[str]:
    """Return raymat's command for a run in `folder`."""
    fixed = {
        "steps": steps, "batch-size": BATCH, "backbone": "mobilenetv2", "device": "cpu", "precision": "fp32",
        "valid-examples": 0, "log-loss-interval": 1, "log-images-interval": 10**6, "checkpoint-interval": 10**6,
        "epoch-examples": 10**6, "storage": folder, "name": "run",
    }  # fmt: skip
    flags = [word for key, value in (fixed | options).items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "raymat", "base", *flags]


def start(folder: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a command that logs into `folder`."""
    log = (folder / "log").open("w")
    environment = os.environ | {"RAY_ADDRESS": "local"}
    return subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=folder)


def raymat_pace(root: Path, steps: int, side: int) -> Pace:
    """Train by the command, on all cores."""
    with tempfile.TemporaryDirectory(prefix="throughput-") as name:
        folder = Path(name)
        threads = max(1, (os.cpu_count() or 2) // 2)
        data = {
            "dataset": root / "data",
            "backgrounds": root / "walls",
            "resolution": side,
            "crop": side,
        }
        if start(folder, command(folder, steps, data | {"threads": threads})).wait():
            sys.exit((folder / "log").read_text()[-2000:])
        rows = [row for row in read_metrics(Store.open(name, "run")) if row["kind"] == "train"]
    counted = rows[WARM_UP:]
    seconds = counted[-1]["time"] - rows[WARM_UP - 1]["time"]
    waited = sum(row["data_wait"] * row["step_seconds"] for row in counted)
    return Pace(BATCH * len(counted) / seconds, waited / seconds)


class PlainPictures(Dataset[list[torch.Tensor]]):
    """Examples the straightforward way: decoded whole, warped at their size, cropped, jittered, as float tensors."""

    def __init__(self, source: FolderSource, side: int, count: int) -> None:
        self._source, self._side = source, side
        order = SampleOrder(1, source.pairs, source.backgrounds, 1, Range(side, side), count)
        self._examples = order.examples(range(count))

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, number: int) -> list[torch.Tensor]:
        torch.set_num_threads(1)
        pictures = pillow_sample(self._source, self._examples[number], "base", self._side)
        return jitter_and_convert(pictures)


def plain_batches(source: FolderSource, steps: int, side: int) -> Iterator[list[torch.Tensor]]:
    """Yield batches from as many processes as there are cores."""
    pictures = PlainPictures(source, side, BATCH * steps)
    yield from DataLoader(pictures, BATCH, num_workers=os.cpu_count() or 1)


class PlainTraining:
    """The reference's step, without its blur and noise."""

    def __init__(self) -> None:
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        self._network = network_of("base", "mobilenetv2").train()
        parts = [
            {"params": list(getattr(self._network, part).parameters()), "lr": rate}
            for part, rate in RATES.items()
            if hasattr(self._network, part)
        ]
        self._adam = torch.optim.Adam(parts)

    def step(self, batch: list[torch.Tensor]) -> float:
        """Take a step; return its loss."""
        fgr, pha, bgr = batch
        src = fgr * pha + bgr * (1 - pha)
        set_dropout_seeds(self._network, torch.arange(len(src)))
        found, colour, err, _ = self._network(src, bgr)
        loss = base_loss(found, colour, err, pha, fgr)
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        return float(loss.detach())


def plain_pace(source: FolderSource, steps: int, side: int, training: PlainTraining | None) -> Pace:
    """Train in this process; without `training` only batches are made."""
    began = waited = 0.0
    asked = time.perf_counter()
    for number, batch in enumerate(plain_batches(source, steps, side)):
        came = time.perf_counter()
        if number >= WARM_UP:
            waited += came - asked
        if training is not None:
            training.step(batch)
        asked = time.perf_counter()
        if number == WARM_UP - 1:
            began = asked
    seconds = asked - began
    return Pace(BATCH * (steps - WARM_UP) / seconds, waited / seconds)


def compare(options: argparse.Namespace) -> None:
    """Print both ways, in turns."""
    steps, side = options.steps, options.resolution
    found: dict[str, list[Pace]] = {
        "raymat": [],
        "DataLoader and Pillow": [],
        "its loader alone": [],
    }
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        source = write_dataset(Path(folder), SIZES["4K"], "png", options.pictures)
        for _ in range(options.rounds):
            found["raymat"].append(raymat_pace(Path(folder), steps, side))
            found["DataLoader and Pillow"].append(plain_pace(source, steps, side, PlainTraining()))
            found["its loader alone"].append(plain_pace(source, steps, side, None))
    print(
        f"{os.cpu_count()} cores, batches of {BATCH} at {side} pixels from 4K, medians of {options.rounds}"
    )
    medians = {}
    for name, paces in found.items():
        medians[name] = statistics.median(pace.examples for pace in paces)
        waiting = statistics.median(pace.waiting for pace in paces)
        print(
            f"{name:22} {medians[name]:7.2f} examples/s, waits {waiting:.0%} of the time for data"
        )
    ratio = medians["raymat"] / medians["DataLoader and Pillow"]
    print(f"raymat : DataLoader and Pillow = {ratio:.2f}")


def anonymous_megabytes(pid: int) -> float:
    """Return what only this process has in memory."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def watch_memory(steps: int) -> None:
    """Train tiny steps, and print what each kind of process has, by the step."""
    with tempfile.TemporaryDirectory(prefix="memory-") as name:
        folder = Path(name)
        tiny = {
            "synthetic": 64,
            "resolution": 32,
            "crop": 32,
            "batch-size": 2,
            "threads": 1,
            "log-loss-interval": 10,
        }
        process = start(folder, command(folder, steps, tiny | {"checkpoint-interval": 250}))
        looks: list[tuple[float, dict[str, float]]] = []
        while process.poll() is None:
            sums: dict[str, float] = {}
            for pid, (kind, _) in family(process.pid).items():
                sums[kind] = sums.get(kind, 0.0) + anonymous_megabytes(pid)
            looks.append((time.time(), sums))
            time.sleep(1.0)
        if process.returncode:
            sys.exit((folder / "log").read_text()[-2000:])
        rows = [row for row in read_metrics(Store.open(name, "run")) if row["kind"] == "train"]
    show_memory([(row["step"], row["time"]) for row in rows], looks)


def show_memory(
    rows: Sequence[tuple[int, float]], looks: Sequence[tuple[float, dict[str, float]]]
) -> None:
    """Print the memory at ten steps, and how it grew from the second on; end with status 1 if it is not flat."""
    moments = [rows[(len(rows) - 1) * tenth // 10] for tenth in range(1, 11)]
    at = [min(looks, key=lambda look, t=t: abs(look[0] - t))[1] for _, t in moments]  # type: ignore[misc]
    kinds = sorted({kind for sums in at for kind in sums}, key=lambda kind: -at[-1].get(kind, 0.0))
    print(
        f"{'MB after step':22}" + "".join(f"{step:>7}" for step, _ in moments) + "  in 1,000 steps"
    )
    steep = []
    for kind in [*kinds, "all"]:
        values = [sum(sums.values()) if kind == "all" else sums.get(kind, 0.0) for sums in at]
        slope = statistics.linear_regression([s / 1000 for s, _ in moments[1:]], values[1:]).slope
        steep += [kind] if slope > LEVEL else []
        print(f"{kind:22}" + "".join(f"{value:7.0f}" for value in values) + f"{slope:+12.2f}")
    if steep:
        sys.exit(f"not flat: {', '.join(steep)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, help="default: 60; with --memory 5000")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=8, help="pairs and backgrounds")
    parser.add_argument("--memory", action="store_true", help="many tiny steps instead")
    options = parser.parse_args()
    options.steps = options.steps or (5000 if options.memory else 60)
    if options.memory:
        watch_memory(options.steps)
    else:
        compare(options)


if __name__ == "__main__":
    main()
