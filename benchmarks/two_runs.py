"""Two runs at once on one machine, each beside one run alone on half of its cores.

Runs the command as a user would, each with a Ray of its own: first one run that may use half of the cores (by its
affinity), then two at once that may use all. Prints the seconds from command to prompt and the seconds of the steps
after the first ten, and the ratio of the slower of the two to the one alone; rounds take turns. A ratio of 1 or less
says that neither starves the other. Ends with status 1 if a run fails or two runs of one seed differ in their losses.

    python benchmarks/two_runs.py [--steps 200] [--rounds 2] [--resolution 128]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from raymat.storage.store import Store
from raymat.train.observability.metrics_log import read_metrics

MAIN = "import sys; from raymat.cli.main import main; sys.exit(main())"
WARM_UP = 10


def command(storage: Path, name: str, steps: int, resolution: int) -> list[str]:
    """Return one run's command."""
    options = {
        "synthetic": 64,
        "steps": steps,
        "batch-size": 4,
        "resolution": resolution,
        "crop": f"{resolution // 2}:{resolution}",
        "backbone": "mobilenetv2",
        "log-loss-interval": 1,
        "storage": storage,
        "name": name,
    }
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-c", MAIN, "base", *flags]


def run(storage: Path, names: Sequence[str], cores: set[int], options: tuple[int, int]) -> float:
    """Run the commands at once on `cores` and return the seconds until the last has ended."""
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    began = time.perf_counter()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        processes = [
            subprocess.Popen(
                command(storage, name, *options), env=environment, stdout=log, stderr=log
            )
            for name in names
            for log in [(storage / f"{name}.log").open("w")]
        ]
    finally:
        os.sched_setaffinity(0, before)
    for name, process in zip(names, processes, strict=True):
        if process.wait() != 0:
            sys.exit((storage / f"{name}.log").read_text()[-2000:])
    return time.perf_counter() - began


def steps_of(storage: Path, name: str) -> tuple[float, list[float]]:
    """Return the seconds of a run's steps after the first ten, and its losses."""
    rows = [row for row in read_metrics(Store.open(str(storage), name)) if "loss" in row]
    times = [float(row["time"]) for row in rows]
    return times[-1] - times[WARM_UP], [float(row["loss"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--resolution", type=int, default=128)
    arguments = parser.parse_args()
    options = (arguments.steps, arguments.resolution)
    cores = os.sched_getaffinity(0)
    half = set(sorted(cores)[: max(1, len(cores) // 2)])
    found: dict[str, list[tuple[float, float]]] = {"alone on half": [], "two at once": []}
    losses = []
    for round_ in range(arguments.rounds):
        for what, names, where in (
            ("alone on half", ["alone"], half),
            ("two at once", ["left", "right"], cores),
        ):
            with tempfile.TemporaryDirectory(prefix="two-runs-") as folder:
                whole = run(Path(folder), names, where, options)
                each = [steps_of(Path(folder), name) for name in names]
            losses += [values for _, values in each]
            found[what].append((whole, max(seconds for seconds, _ in each)))
            print(
                f"round {round_}, {what}: {whole:.1f} s, steps {found[what][-1][1]:.1f} s",
                flush=True,
            )
    (alone, alone_steps), (two, two_steps) = (
        tuple(statistics.median(values) for values in zip(*rows, strict=True))
        for rows in found.values()
    )
    print(
        f"two at once : alone on half of the cores = {two / alone:.2f}, steps {two_steps / alone_steps:.2f}"
    )
    if any(values != losses[0] for values in losses):
        sys.exit("the losses differ, although all runs have one seed")


if __name__ == "__main__":
    main()
