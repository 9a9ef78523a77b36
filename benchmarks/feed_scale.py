"""How the feed grows with the ranks: rows a second, CPU a row, and waits, of ranks that only count.

Each rank is an actor without a core of its own, with its own stream of made micro-batches so small that making them costs
little: what is measured is Ray Data. All of them start together and count for some seconds, window after window, and none takes
a step before the others have theirs, as in training. Beside it,
with `--old`, one dataset whose rows Ray's coordinator deals out to all ranks, one row a block. CPU is that of all processes
of this Ray.
A gap is the longest wait for the first row of a window that is not a rank's first, and beside it the longest for any other row.

    python benchmarks/feed_scale.py [--ranks 1,2,4,8] [--seconds 12] [--old]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from PIL import Image
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

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

SIDE = 16
PAIRS = 100
LONG = 4_000_000
"""Steps: more than are ever taken."""
TASK_ROWS = 50


def tiny_pictures(folder: Path) -> SourceSpec:
    """Write pairs and backgrounds of so few pixels that reading them costs little."""
    rng = np.random.Generator(np.random.Philox(1))
    for half, bands in (("data/train/fgr", (3,)), ("data/train/pha", ()), ("walls/train", (3,))):
        (folder / half).mkdir(parents=True)
        for number in range(PAIRS):
            pixels = rng.integers(0, 256, (SIDE, SIDE, *bands), np.uint8)
            Image.fromarray(pixels).save(folder / half / f"{number}.png")
    listing = build_listing(f"{folder}/data", f"{folder}/walls", need_valid=False)
    (folder / "listing").write_bytes(listing.to_bytes())
    return SourceSpec.listed(str(folder / "listing"), listing.digest)


def plan_of(source: SourceSpec, ranks: int) -> StreamPlan:
    """Return the stream of some `ranks`, whose rows have one example each."""
    order = SampleOrder(0, PAIRS, PAIRS, ranks, Range(SIDE, SIDE), LONG * ranks)
    return StreamPlan(source, order, Geometry(stage="base", resolution=SIDE))


class Rank:
    """A rank that only counts."""

    def __init__(self, world: World, plan: StreamPlan, steps: str, shard: Any = None) -> None:
        """`steps`: a file of as many numbers as ranks, the steps that each has taken."""
        self._world, self._plan, self._shard = world, plan, shard
        self._steps = np.memmap(steps, np.int64, "r+", shape=(world.size,))

    def ready(self) -> None:
        return None

    def first(self, step: int) -> float:
        """Return the seconds from a fresh stream to its first row."""
        began = time.perf_counter()
        batches = RayFeed(self._plan, self._world, lambda: 1).train(step, step + 20)
        next(batches)
        seconds = time.perf_counter() - began
        for _ in batches:  # a stream that is left would have its tasks' processes killed
            pass
        return seconds

    def count(self, until: float) -> tuple[int, float, float, float]:
        """Return rows, seconds from the first row on, and the longest wait at a window's end and elsewhere."""
        rows = self._dealt() if self._shard is not None else self._own()
        next(rows)
        began = last = time.time()
        count, gap, wait = 0, 0.0, 0.0
        for fresh in rows:
            now = time.time()
            count += 1
            if fresh:
                gap = max(gap, now - last)
            else:
                wait = max(wait, now - last)
            self._steps[self._world.rank] = count
            while now < until and self._steps.min() < count - 1:
                time.sleep(0.001)
                now = time.time()
            last = now
            if now > until:
                break
        return count, last - began, gap, wait

    def _own(self) -> Iterator[bool]:
        """Yield, for each row, whether it is the first of a window."""
        feed = RayFeed(self._plan, self._world, lambda: 1)
        window = datasource.MAX_TASKS_PER_WINDOW * datasource.rows_per_task(self._plan, self._world)
        feed.expect([Stretch("train", 0, LONG)])
        for step, batch in enumerate(feed.train(0, LONG)):
            assert batch.step == step, (batch.step, step)
            yield step > 0 and step % window == 0

    def _dealt(self) -> Iterator[bool]:
        for table in self._shard.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=2
        ):
            assert table.column("rank")[0].as_py() == self._world.rank
            yield False


class AllRanks(Datasource):
    """The rows of all ranks, step by step and rank by rank, in 500 tasks."""

    def __init__(self, plan: StreamPlan, ranks: int) -> None:
        super().__init__()
        self._plan, self._ranks = plan, ranks

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        data = BlockMetadata(num_rows=TASK_ROWS, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(lambda task=task: self._rows(task), data)  # type: ignore[misc]
            for task in range(500)
        ]

    def _rows(self, task: int) -> Iterator[Any]:
        for number in range(task * TASK_ROWS, (task + 1) * TASK_ROWS):
            step, rank = divmod(number, self._ranks)
            window = Window("train", step, step + 1, World(rank, self._ranks))
            yield from datasource.read_rows(self._plan, window, range(1))


def shards(plan: StreamPlan, ranks: int) -> list[Any]:
    """Return one dataset's split, as a coordinator deals it out: the old way."""
    context = ray.data.DataContext.get_current()
    context.target_max_block_size, context.execution_options.preserve_order = 1, True
    rows = AllRanks(plan, ranks)
    dataset = ray.data.read_datasource(rows, override_num_blocks=500, num_cpus=1)
    return list(dataset.streaming_split(ranks, equal=True))


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and all below it, those that have ended included."""
    ticks, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(entry.name)
            parents[pid], ticks[pid] = int(fields[1]), sum(map(int, fields[11:15]))
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(ticks[pid] for pid in mine) / os.sysconf("SC_CLK_TCK")


def steps_of(ranks: int) -> str:
    """Make the file in which ranks keep their steps."""
    handle, path = tempfile.mkstemp(prefix="raymat-steps-")
    os.write(handle, bytes(8 * ranks))
    os.close(handle)
    return path


def measure(source: SourceSpec, ranks: int, seconds: float, old: bool) -> str:
    """Count with so many ranks for some seconds; return a line of what was found."""
    plan = plan_of(source, ranks)
    dealt = shards(plan, ranks) if old else [None] * ranks
    maker, steps = ray.remote(num_cpus=0)(Rank), steps_of(ranks)
    actors = [maker.remote(World(r, ranks), plan, steps, dealt[r]) for r in range(ranks)]
    ray.get([actor.ready.remote() for actor in actors])
    if not old:  # processes and imports
        ray.get([actor.first.remote(0) for actor in actors])
    before, began = cpu_seconds(), time.time()
    found = ray.get([actor.count.remote(began + seconds) for actor in actors])
    cpu = cpu_seconds() - before
    for actor in actors:
        ray.kill(actor)
    rows = sum(count for count, *_ in found)
    rate = sum(count / max(took, 1e-9) for count, took, *_ in found)
    gaps = [max(each) for each in zip(*(waits for _, _, *waits in found), strict=True)]
    return (
        f"{'old' if old else 'new'} | {ranks:2} ranks | {rate:7.0f} rows/s | {1000 * cpu / max(1, rows):6.2f} CPU-ms a row | "
        f"longest wait at a window's end {1000 * gaps[0]:.0f} ms, elsewhere {1000 * gaps[1]:.0f} ms"
    )


def making(source: SourceSpec) -> str:
    """Return a line: what the rows themselves cost."""
    plan, window = plan_of(source, 1), Window("train", 0, 1000, World())
    list(datasource.read_rows(plan, window, range(3)))
    began = time.process_time()
    list(datasource.read_rows(plan, window, range(3, 503)))
    return f"{os.cpu_count()} cores; of the CPU of a row {2 * (time.process_time() - began):.2f} ms are its making"


def first_batches(source: SourceSpec, rounds: int) -> str:
    """Return a line: how long a stream takes to its first row, early and late in a long run."""
    rank = ray.remote(num_cpus=0)(Rank).remote(World(), plan_of(source, 1), steps_of(1))
    ray.get(rank.first.remote(0))
    found: dict[int, list[float]] = {10: [], 1_000_000: []}
    for _ in range(rounds):
        for step, seconds in found.items():
            seconds.append(ray.get(rank.first.remote(step)))
    ray.kill(rank)
    early, late = (statistics.median(seconds) for seconds in found.values())
    return f"first row at step 10 {early:.2f} s, at step 1,000,000 {late:.2f} s: ratio {late / early:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ranks", default="1,2,4,8")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--old", action="store_true", help="also one coordinator for all ranks")
    options = parser.parse_args()
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=10**9,
    )
    with tempfile.TemporaryDirectory(prefix="raymat-feed-") as folder:
        source = tiny_pictures(Path(folder))
        print(making(source))
        for ranks in map(int, options.ranks.split(",")):
            for old in (True, False) if options.old else (False,):
                print(measure(source, ranks, options.seconds, old), flush=True)
        print(first_batches(source, options.rounds))
        ray.shutdown()


if __name__ == "__main__":
    main()
