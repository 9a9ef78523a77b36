"""The feed beside plain processes that make the same rows: examples a second from 4K pictures, decoded for real.

One rank that only counts takes rows from its stream, whose read tasks have all cores of this machine, on a Ray as a run has it of
its own. Plain processes, one for each core, make rows by the same code and drop them: they hand nothing over, so that no feed could
be quicker. Both take turns.

    python benchmarks/feed_decoding.py [--seconds 60] [--rounds 5] [--resolution 512] [--batch 8]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from data_path import SIZES, write_dataset

from raymat.cluster.ray_data_internals import tell_nobody
from raymat.cluster.ray_internals import apply_settings, only_what_a_run_needs
from raymat.cluster.worker import datasource
from raymat.cluster.worker.datasource import StreamPlan, Window
from raymat.cluster.worker.ray_feed import RayFeed
from raymat.config.values import Range
from raymat.data.batch import Geometry
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.source import SourceSpec
from raymat.data.feed import Stretch
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World

STEPS = 1_000_000
"""More than are ever taken."""
WARM_UP = 8
"""Rows of each process, or of the stream for each core, that are not counted."""


def plan_of(folder: Path, pictures: int, options: argparse.Namespace) -> StreamPlan:
    """Write 4K JPEGs with PNG alphas, and return the stream of their samples."""
    write_dataset(folder, SIZES["4K"], "png", pictures)
    listing = build_listing(f"{folder}/data", f"{folder}/walls", need_valid=False)
    (folder / "listing").write_bytes(listing.to_bytes())
    source = SourceSpec.listed(str(folder / "listing"), listing.digest)
    side, batch = options.resolution, options.batch
    order = SampleOrder(0, pictures, pictures, batch, Range(side // 2, side), STEPS * batch)
    return StreamPlan(source, order, Geometry(stage="base", resolution=side))


class Rank:
    """A rank that only counts."""

    def __init__(self, plan: StreamPlan) -> None:
        self._plan = plan

    def count(self, seconds: float, cores: int) -> float:
        """Return rows a second of a fresh stream, after its first ones."""
        tell_nobody(grows=False)  # as workers do
        feed = RayFeed(self._plan, World(), lambda: cores)
        feed.expect([Stretch("train", 0, STEPS)])
        began, count = 0.0, -WARM_UP * cores
        for batch in feed.train(0, STEPS):
            assert batch.fgr.any()
            count += 1
            if count == 0:
                began = time.perf_counter()
            elif count > 0 and time.perf_counter() - began > seconds:
                break
        return count / (time.perf_counter() - began)


def make_rows(plan: StreamPlan, part: int, parts: int, seconds: float, found: Any) -> None:
    """Make every `parts`-th row in this process; put rows a second into `found`."""
    window = Window("train", 0, STEPS, World())
    began, count = 0.0, -WARM_UP
    for _ in datasource.read_rows(plan, window, range(part, STEPS, parts)):
        count += 1
        if count == 0:
            began = time.perf_counter()
        elif count > 0 and time.perf_counter() - began > seconds:
            break
    found.put(count / (time.perf_counter() - began))


def plain(plan: StreamPlan, seconds: float, cores: int) -> float:
    """Return the rows a second of as many processes as there are cores."""
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    processes = [
        context.Process(target=make_rows, args=(plan, part, cores, seconds, found))
        for part in range(cores)
    ]
    for process in processes:
        process.start()
    rate = sum(found.get() for _ in processes)
    for process in processes:
        process.join()
    return float(rate)


def fed(plan: StreamPlan, seconds: float, cores: int) -> float:
    """Return the rows a second that the feed brings to one rank."""
    rank = ray.remote(num_cpus=0)(Rank).remote(plan)
    rate = ray.get(rank.count.remote(seconds, cores))
    ray.kill(rank)
    return float(rate)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each way and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=12, help="pairs and backgrounds")
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    rates: dict[str, list[float]] = {"feed": [], "plain processes": []}
    with tempfile.TemporaryDirectory(prefix="raymat-feed-") as folder:
        plan = plan_of(Path(folder), options.pictures, options)
        apply_settings()
        with only_what_a_run_needs():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=2 * 10**9,
            )
        for _ in range(options.rounds):
            rates["feed"].append(options.batch * fed(plan, options.seconds, cores))
            rates["plain processes"].append(options.batch * plain(plan, options.seconds, cores))
        ray.shutdown()
    for name, found in rates.items():
        told = ", ".join(f"{rate:.1f}" for rate in found)
        print(f"{name:16} {statistics.median(found):6.1f} examples/s ({told})")
    ratios = [a / b for a, b in zip(rates["feed"], rates["plain processes"], strict=True)]
    print(
        f"{cores} cores, batches of {options.batch} at {options.resolution} pixels from 4K: feed : plain processes = "
        f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    )


if __name__ == "__main__":
    main()
