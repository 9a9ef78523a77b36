"""What it costs to begin the stream at a late step, against an early one.

Prints the seconds from asking a fresh stream for its first batch to having it, at step 10 and at
step 1,000,000 of the same long run over 240,000 pairs, and the ratio of the medians. The two
take turns in one process, so that both see the same machine. Made pictures of 64 pixels: what is
measured is the order and Ray Data's start, not decoding.

    python benchmarks/resume_cost.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import time

import ray

from raymat.cluster.worker.datasource import StreamPlan
from raymat.cluster.worker.ray_feed import RayFeed
from raymat.config.values import Range
from raymat.data.batch import Geometry
from raymat.data.dataset.source import SourceSpec
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World

PAIRS = 240_000
EARLY, LATE = 10, 1_000_000


def first_batch(plan: StreamPlan, step: int) -> float:
    """Seconds from a fresh stream's start to its first batch."""
    began = time.perf_counter()
    batches = RayFeed(plan, World(), lambda: 1).train(step, step + 100)
    batch = next(iter(batches))
    seconds = time.perf_counter() - began
    assert batch.numbers[0] == step * plan.order.batch_size
    for _ in batches:  # to the window's end, so that nothing of it runs beside the next
        pass
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    order = SampleOrder(
        seed=0,
        pairs=PAIRS,
        backgrounds=PAIRS,
        batch_size=4,
        crop=Range(32, 64),
        total_examples=8_000_000,
    )
    source = SourceSpec.synthetic(count=PAIRS, seed=0, size=64)
    plan = StreamPlan(source, order, Geometry(stage="base", resolution=64))
    first_batch(plan, 0)  # worker processes and imports
    seconds: dict[int, list[float]] = {EARLY: [], LATE: []}
    for _ in range(rounds):
        for step, found in seconds.items():
            found.append(first_batch(plan, step))
    early, late = (statistics.median(found) for found in seconds.values())
    for step, found in seconds.items():
        print(
            f"step {step:>9,}: median {statistics.median(found):.2f} s, {min(found):.2f} to {max(found):.2f}"
        )
    print(f"ratio {late / early:.3f}")
    ray.shutdown()


if __name__ == "__main__":
    main()
