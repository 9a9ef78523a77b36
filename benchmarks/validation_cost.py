"""What a validation takes from training time: beside training, against in the loop.

One run with one worker, which does both in turns: its validations run beside training (--validation beside), the one before
the first step and the last one in the loop. What one beside training takes: the steps from its beginning (the start of its
process included) until its result was found, against as many of the steps between, at their median; so what slows the
machine as a whole falls on both sides. Needs two cores, one for the worker, and nothing else that runs.

    python benchmarks/validation_cost.py [--validations 6] [--interval 40] [--examples 50] [--resolution 128]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from typing import Any

import ray

from raymat.cluster.driver.launch import fit
from raymat.cluster.ray_internals import apply_settings
from raymat.config.run import build
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import read_metrics

SETTLING = 5
"""So many of the first steps are left out."""


def train(options: argparse.Namespace, folder: str) -> Store:
    """A run that validates every `--interval` steps."""
    flat = {
        "storage": folder,
        "name": "run",
        "device": "cpu",
        "backbone": "mobilenetv2",
        "synthetic": 64,
        "batch_size": 8,
        "epoch_examples": 10**6,
        "validation": "beside",
        "steps": options.interval * (options.validations + 1),
        "valid_interval": options.interval,
        "checkpoint_interval": options.interval,
        "valid_examples": options.examples,
        "resolution": options.resolution,
        "crop": str(options.resolution),
        "log_loss_interval": 1,
        "log_images_interval": 10**6,
    }
    config = build("base", flat)
    fit(config)
    return Store.open(config.storage, config.name)


def step_seconds(store: Store) -> list[tuple[float, float]]:
    """(when it ended, how long it took) of each step whose predecessor ended right before it."""
    found = [row for row in read_metrics(store) if row["kind"] == "train"]
    pairs = list(itertools.pairwise(found))[SETTLING:]
    points = {event["step"] for event in events(store, "validation_begun")}
    # After a validation point come its save and the first batch of a new stream.
    return [(b["time"], b["time"] - a["time"]) for a, b in pairs if a["step"] not in points]


def events(store: Store, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(store) if event["kind"] == kind]


def spans(store: Store) -> list[tuple[float, float]]:
    """From when to when each validation ran beside training."""
    begun = {event["step"]: event["time"] for event in events(store, "validation_begun")}
    found = {event["step"]: event["time"] for event in events(store, "validation_found")}
    return [(begun[step], found[step]) for step in sorted(found)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--validations", type=int, default=6, help="beside training")
    parser.add_argument("--interval", type=int, default=40, help="steps between them")
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--resolution", type=int, default=128)
    options = parser.parse_args()
    apply_settings()
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=10**9,
        log_to_driver=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="rm", dir="/tmp") as folder:
        store = train(options, folder)
        tell(store)
    ray.shutdown()


def tell(store: Store) -> None:
    """Print what the run says."""
    steps, windows = step_seconds(store), spans(store)
    within = [[s for end, s in steps if a < end <= b] for a, b in windows]
    outside = [s for end, s in steps if not any(a < end <= b for a, b in windows)]
    usual = statistics.median(outside)
    lost = [sum(each) - usual * len(each) for each in within]
    told = events(store, "validation")
    loop = [e["seconds"] for e in told if e["place"] == "loop"]
    waited = sum(e["waited"] for e in told)
    beside = [e["seconds"] for e in told if e["place"] == "beside"]
    a, b = statistics.median(lost), statistics.median(loop)
    print(f"step {usual:.3f} s; in the loop a validation takes {b:.2f} s of training")
    print(
        f"beside training {len(beside)} took {statistics.median(beside):.2f} s each "
        f"({statistics.median(y - x for x, y in windows):.2f} s with the start of a process), "
        f"and of training {a:.2f} s ({', '.join(f'{x:.2f}' for x in sorted(lost))}); waited for: {waited:.2f} s"
    )
    print(f"that is {100 * a / b:.0f} % of a validation in the loop")


if __name__ == "__main__":
    main()
