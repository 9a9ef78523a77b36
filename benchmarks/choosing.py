"""What a run gives, by how its networks are chosen and combined.

    python benchmarks/choosing.py [--steps 480] [--test 100] [--folder DIR]

Trains a base network on procedural pairs in this process (mobilenetv2, 80 pixels, constant rates, averaged weights on), a
checkpoint and a validation of 24 examples every 40 steps. Then one table over other procedural examples that nobody
trained on or chose by: the last checkpoint, the best by validation loss, the average of the five best with new batch-norm
statistics, the moving average of the last checkpoint, and the mean of the predictions of the five best. On one core some minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import torch

from raymat.analysis.evaluation import Candidate
from raymat.analysis.examples import spread
from raymat.analysis.scores import ScoreReport
from raymat.cli import average, select
from raymat.cli.evaluate import evaluate
from raymat.config.run import RunConfig, build
from raymat.data.batch import Geometry
from raymat.data.dataset.source import SourceSpec
from raymat.data.feed import LocalFeed
from raymat.distributed.world import World
from raymat.storage.store import Store
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.loop.trainer import run
from raymat.train.run.open_run import open_run
from raymat.train.run.selected_weights import read_weights

SIDE, INTERVAL, TOP = 80, 40, 5
TEST_SEED = 1
"""The run's is 0: other pictures of the same kind."""
CPU = torch.device("cpu")


def train(folder: Path, steps: int) -> RunConfig:
    """Train from the start to the end; every checkpoint stays."""
    config = build(
        "base",
        {
            "storage": str(folder),
            "name": "run",
            "synthetic": 256,
            "backbone": "mobilenetv2",
            "device": "cpu",
            "precision": "fp32",
            "resolution": SIDE,
            "crop": f"64:{SIDE}",
            "batch_size": 8,
            "steps": steps,
            "epoch_examples": 10**9,
            "ema_decay": 0.99,
            "keep": 1000,
            "checkpoint_interval": INTERVAL,
            "valid_interval": INTERVAL,
            "valid_examples": 24,
            "log_images_interval": 10**6,
        },
    )
    store = Store.open(config.storage, config.name)
    prepared = open_run(config, store)
    run(
        prepared,
        Worker(World(), CPU),
        feed=LocalFeed(prepared.source.open(), prepared.order, prepared.geometry),
        store=store,
        host=Host(),
    )
    return config


def named(label: str, what: str) -> Candidate:
    """The network that `what` means, for the table."""
    return dataclasses.replace(Candidate.of(read_weights(what), CPU, "fp32"), label=label)


def table(url: str, test: int) -> ScoreReport:
    """Choose, combine and measure."""
    best = select.select(select.Options(url=url, top=TOP)).names
    averaged = f"{url}/average.pth"
    average.average(average.Options(what=tuple(best), output=averaged, device="cpu"))
    source = SourceSpec.synthetic(test, TEST_SEED, SIDE, test).open()
    examples = spread(source, "valid", TEST_SEED, None, Geometry("base", SIDE))
    settings = {
        "data": "procedural pictures",
        "split": "valid",
        "resolution": SIDE,
        "seed": TEST_SEED,
        "device": "cpu",
        "precision": "fp32",
    }
    singles = [
        named("final", url),
        named("best by validation", best[0]),
        named(f"average of the {TOP} best", averaged),
        named("moving average (EMA)", f"{url}@ema"),
    ]
    one = evaluate(singles, examples, CPU, "fp32", settings)
    top = [named(what, what) for what in best]
    other = evaluate(top, examples, CPU, "fp32", settings, ensemble=True)
    rows = [*one.rows, (f"ensemble of the {TOP} best", other.rows[-1][1])]
    seen = [
        dataclasses.replace(a, values=[*a.values, b.values[-1]])
        for a, b in zip(one.seen, other.seen, strict=True)
    ]
    return ScoreReport(rows, seen, settings)


def main() -> None:
    """Train, then print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=480)
    parser.add_argument("--test", type=int, default=100, help="examples of the table")
    parser.add_argument("--folder", type=Path, help="keep the run there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        began = time.monotonic()
        config = train(given.folder or Path(temporary), given.steps)
        print(f"{given.steps} steps of 8 in {time.monotonic() - began:.0f} s")
        print(table(f"{config.storage}/{config.name}", given.test).text)
        print(f"in all {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
