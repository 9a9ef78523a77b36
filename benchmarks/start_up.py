"""From the command to the first step, and from the last step to the prompt, beside the same training under torchrun.

Both train MattingBase with mobilenetv2 on the same made pictures, in the same steps of 8 examples; raymat with a Ray of its own, a
lease, events, rows and checkpoints, torchrun with none of these. They take turns, and their losses are compared. raymat's
seconds are split by its own events:

    driver       from the command until the driver has taken the run: imports, storage, dataset, Ray's start
    workers      until the workers' first word: Ray Train's controller, their processes and imports
    first batch  until the feed gives it, beside which the network is made
    first step   until it is done
    end          from the last step to the run's last event: its checkpoint is committed, curves are merged
    exit         until the prompt

CPU is that of all processes up to the first step, and to the prompt, with what each kind of process had used by the first
step in the last round. With --restarts a worker is killed too, some seconds after the first step: from the kill to the next
step. Of torchrun's workers the same, which begin at the first step again.

    python benchmarks/start_up.py [--workers 1,2] [--rounds 3] [--steps 60] [--side 64] [--restarts]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from start_systems.process_times import ProcessTimes

from raymat.errors import RaymatError
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import read_metrics

HERE = Path(__file__).resolve().parent
PATIENCE = 300.0
LONG = 10**6
"""Steps: more than are ever taken."""
INTERVAL = 20
"""Steps between checkpoints where a worker is killed."""


class Command:
    """A command that runs in a folder, and the CPU time of all its processes."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self._log = folder / "log"
        paths = os.pathsep.join([str(HERE), str(HERE.parent)])
        environment = os.environ | {
            "PYTHONPATH": paths,
            "RAY_ADDRESS": "local",
            "OMP_NUM_THREADS": "1",
        }
        self.began = time.time()
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                words, stdout=log, stderr=log, cwd=folder, env=environment
            )
        self.times = ProcessTimes(self.process.pid)

    def end(self, *, stopped: bool = False) -> float:
        """Wait for its end, and return when that was. `stopped`: it may have failed, since it was told to stop."""
        code = self.process.wait(PATIENCE)
        ended = time.time()
        self.times.stop()
        if code and not stopped:
            sys.exit(self._log.read_text()[-3000:])
        return ended

    def wait_for(self, found: Callable[[], Any]) -> Any:
        """Return what `found` returns, once that is true."""
        until = time.monotonic() + PATIENCE
        while not (result := found()):
            if self.process.poll() is not None or time.monotonic() > until:
                sys.exit(self._log.read_text()[-3000:])
            time.sleep(0.1)
        return result


def raymat_words(folder: Path, workers: int, steps: int, side: int) -> list[str]:
    """Return the command of a run in `folder`."""
    options = {
        "synthetic": 64, "steps": steps, "batch-size": 8, "resolution": side, "crop": side, "backbone": "mobilenetv2",
        "device": "cpu", "precision": "fp32", "valid-examples": 0, "threads": 1, "epoch-examples": 10**6,
        "log-loss-interval": 1, "log-images-interval": 10**6, "checkpoint-interval": INTERVAL if steps == LONG else LONG,
        "workers": workers, "storage": folder, "name": "run",
    }  # fmt: skip
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "raymat", "base", *flags]


def torchrun_words(
    folder: Path, workers: int, steps: int, side: int, restarts: int = 0
) -> list[str]:
    """Return the command of the same training under torchrun."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}",
        f"--max-restarts={restarts}", "-m", "start_systems.torchrun_job", str(steps), str(side), str(folder / "steps"),
    ]  # fmt: skip


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return a run's events of one kind, none while there is no run."""
    try:
        return [
            event for event in read_events(Store.open(str(folder), "run")) if event["kind"] == kind
        ]
    except RaymatError:
        return []


def whole_raymat(
    folder: Path, workers: int, steps: int, side: int
) -> tuple[dict[str, float], list[float], dict[str, float]]:
    """Run it; return its figures, its losses by step, and what its processes had used by the first step."""
    command = Command(folder, raymat_words(folder, workers, steps, side))
    ended = command.end()
    (launch,), (start,), (first,), (end,) = (
        events_of(folder, kind) for kind in ("launch", "start", "first_step", "end")
    )
    rows = [row for row in read_metrics(Store.open(str(folder), "run")) if row["kind"] == "train"]
    batch = first["time"] - first["seconds"] + first["batch"]
    moments = [command.began, launch["time"], start["time"], batch, first["time"]]
    phases = zip(
        ("driver", "workers", "first batch", "first step"), moments, moments[1:], strict=False
    )
    last = rows[-1]["time"]
    figures = {name: after - before for name, before, after in phases} | {
        "to the first step": first["time"] - command.began,
        "end": end["time"] - last,
        "exit": ended - end["time"],
        "to the prompt": ended - last,
        "CPU to the first step": sum(command.times.until(first["time"]).values()),
        "CPU in all": sum(command.times.until(ended).values()),
    }
    used = command.times.until(first["time"])
    return figures, [float(row["loss"]) for row in rows], used


def whole_torchrun(
    folder: Path, workers: int, steps: int, side: int
) -> tuple[dict[str, float], list[float]]:
    """Run it; return its figures and its losses by step."""
    command = Command(folder, torchrun_words(folder, workers, steps, side))
    ended = command.end()
    rows = steps_of(folder)
    first, last = rows[0]["time"], rows[-1]["time"]
    figures = {
        "to the first step": first - command.began,
        "to the prompt": ended - last,
        "CPU to the first step": sum(command.times.until(first).values()),
        "CPU in all": sum(command.times.until(ended).values()),
    }
    return figures, [float(row["loss"]) for row in rows]


def steps_of(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Return the steps that a worker of torchrun's has noted."""
    path = folder / f"steps-{rank}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def restart_raymat(folder: Path, workers: int, side: int, after: float) -> dict[str, float]:
    """Kill its last worker; return the seconds to the next step."""
    command = Command(folder, raymat_words(folder, workers, LONG, side))
    command.wait_for(lambda: events_of(folder, "first_step"))
    time.sleep(after)
    command.wait_for(lambda: events_of(folder, "commit"))
    victim = events_of(folder, "start")[0]["ranks"][-1]["pid"]
    killed = time.time()
    os.kill(victim, signal.SIGKILL)
    again = command.wait_for(lambda: events_of(folder, "first_step")[1:])
    command.process.send_signal(signal.SIGTERM)
    command.end(stopped=True)
    return {"from a kill to a step": again[0]["time"] - killed}


def restart_torchrun(folder: Path, workers: int, side: int, after: float) -> dict[str, float]:
    """Do the same to torchrun's."""
    command = Command(folder, torchrun_words(folder, workers, LONG, side, restarts=1))
    victim = command.wait_for(lambda: steps_of(folder, workers - 1))[0]["pid"]
    time.sleep(min(after, 5.0))  # nothing is started ahead
    killed = time.time()
    os.kill(victim, signal.SIGKILL)
    again = command.wait_for(
        lambda: [s for s in steps_of(folder, workers - 1) if s["pid"] != victim]
    )
    command.process.send_signal(signal.SIGTERM)
    command.end(stopped=True)
    return {"from a kill to a step": again[0]["time"] - killed}


def require_same(ours: Sequence[float], theirs: Sequence[float]) -> None:
    """End with an error if the losses are not those of the same training."""
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), 1):
        if abs(a - b) > 1e-6 * abs(b):
            sys.exit(f"the losses of step {step} differ: {a} and {b}")


def show(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> None:
    """Print the medians of all rounds, and ratios."""
    for name in ours[0]:
        mine = statistics.median(figures[name] for figures in ours)
        spread = f"{min(f[name] for f in ours):.2f} to {max(f[name] for f in ours):.2f}"
        line = f"  {name:22} {mine:7.2f} s  ({spread})"
        if name in theirs[0]:
            other = statistics.median(figures[name] for figures in theirs)
            line += f"  torchrun {other:6.2f} s, ratio {mine / other:.2f}"
        print(line, flush=True)


def measure(workers: int, options: argparse.Namespace) -> None:
    """Print what so many workers take."""
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(options.rounds):
        with (
            tempfile.TemporaryDirectory(prefix="start-") as a,
            tempfile.TemporaryDirectory(prefix="start-") as b,
        ):
            mine, my_losses, cpu = whole_raymat(Path(a), workers, options.steps, options.side)
            other, losses = whole_torchrun(Path(b), workers, options.steps, options.side)
        require_same(my_losses, losses)
        if options.restarts:
            with (
                tempfile.TemporaryDirectory(prefix="start-") as a,
                tempfile.TemporaryDirectory(prefix="start-") as b,
            ):
                mine |= restart_raymat(Path(a), workers, options.side, options.after)
                other |= restart_torchrun(Path(b), workers, options.side, options.after)
        ours.append(mine)
        theirs.append(other)
    print(f"{workers} workers, medians of {options.rounds}")
    show(ours, theirs)
    used = sorted(cpu.items(), key=lambda item: -item[1])
    print(
        "  CPU s to the first step: " + ", ".join(f"{kind} {s:.1f}" for kind, s in used if s >= 0.2)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--restarts", action="store_true", help="kill a worker, too")
    parser.add_argument(
        "--after", type=float, default=40.0, help="seconds from the first step to the kill"
    )
    options = parser.parse_args()
    for workers in map(int, options.workers.split(",")):
        measure(workers, options)


if __name__ == "__main__":
    main()
