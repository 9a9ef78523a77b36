"""What the captured background's jitter teaches: networks of recipe 1 and 2, on captured backgrounds of another exposure.

    python benchmarks/jitter_learning.py [--passes 1] [--test 80] [--jobs 3] [--folder DIR]

Trains base networks in processes of one thread (mobilenetv2 from random weights, pictures of 128 pixels shrunk to 64 for the
network, batches of 4, Adam at 5e-4 for all parts, falling along a cosine), with each recipe and each of three seeds, on the same
4,000 procedural examples, once each. Then measures all on other procedural
examples whose captured background, and nothing else, is multiplied by a gain and shifted by an offset (0..1 is black to
white): a table of SAD and MSE, the mean over the seeds and its spread (standard deviation). The last rows are dark scenes: source
and background together at a quarter of their brightness, before the captured background is changed. With --folder the
same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from raymat.analysis.evaluation import Candidate
from raymat.analysis.examples import spread
from raymat.config.run import RunConfig, build
from raymat.config.sections import Recipe
from raymat.data.batch import Geometry
from raymat.data.composite import Composed
from raymat.data.dataset.source import SourceSpec
from raymat.data.decode import RawImage
from raymat.data.feed import LocalFeed
from raymat.distributed.world import World
from raymat.model.matting import MattingBase
from raymat.storage.store import Store
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.loop.trainer import run
from raymat.train.optim.forward import ForwardPass
from raymat.train.run.open_run import open_run
from raymat.train.run.selected_weights import read_weights
from raymat.train.validation.matting_metrics import alpha_metrics

SIDE, SEEN, EXAMPLES, BATCH = 128, 64, 4000, 4
SEEDS = (0, 1, 2)
COMPARED: tuple[Recipe, ...] = ("1", "2")
"""Of weights, order and augmentation."""
PICTURES, TEST_PICTURES = 0, 100
"""Seeds of the procedural pictures to train on and to measure with."""
CPU = torch.device("cpu")
METRICS = ("sad", "mse")


class Change(NamedTuple):
    """What happens to a picture before the network sees it: `scene` to source and background, the rest to the background."""

    gain: float = 1.0
    offset: float = 0.0
    scene: float = 1.0

    def __str__(self) -> str:
        dark = "" if self.scene == 1 else f"scene x {self.scene:g}, "
        return f"{dark}gain {self.gain:.2f}, offset {self.offset:+.3f}"


GAINS = [Change(gain=gain) for gain in (0.7, 0.85, 1.0, 1.15, 1.3)]
OFFSETS = [Change(offset=offset) for offset in (-0.15, -0.075, 0.075, 0.15)]
BOTH = [Change(0.85, 0.075), Change(1.15, -0.075)]
DARK = [Change(scene=0.25), Change(1.3, scene=0.25), Change(offset=0.04, scene=0.25)]
CHANGES = (*GAINS, *OFFSETS, *BOTH, *DARK)


class Drawn:
    """The training pictures as a source, in files that all processes share."""

    def __init__(self, folder: Path) -> None:
        self.pairs = self.backgrounds = EXAMPLES
        self.valid_pairs = self.valid_backgrounds = self.fetch_ahead = 0
        self._fgr, self._pha, self._bgr = (
            np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("fgr", "pha", "bgr")
        )

    @staticmethod
    def draw(folder: Path) -> None:
        """Draw them, unless they are there."""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "bgr.npy").exists():
            return
        source = SourceSpec.synthetic(EXAMPLES, PICTURES, SIDE, 0).open()
        pairs = [source.open_pair(i) for i in range(EXAMPLES)]
        np.save(folder / "fgr.npy", np.stack([fgr.decode() for fgr, _ in pairs]))
        np.save(folder / "pha.npy", np.stack([pha.decode() for _, pha in pairs]))
        walls = [source.open_background(i).decode() for i in range(EXAMPLES)]
        np.save(folder / "bgr.npy", np.stack(walls))

    def open_pair(self, index: int, valid: bool = False) -> tuple[RawImage, RawImage]:
        """Open a pair."""
        return RawImage(self._fgr[index], "fgr"), RawImage(self._pha[index], "pha")

    def open_background(self, index: int, valid: bool = False) -> RawImage:
        """Open a background."""
        return RawImage(self._bgr[index], "bgr")

    def name_of(self, index: int, valid: bool = False) -> str:
        """Name a pair."""
        return f"{index:04}"


Scores = dict[Change, dict[str, float]]


def config_of(folder: str, recipe: Recipe, seed: int, passes: float) -> RunConfig:
    """The run of a recipe and a seed."""
    return build(
        "base",
        {
            "storage": folder,
            "name": f"recipe-{recipe}-seed-{seed}",
            "recipe": recipe,
            "seed": seed,
            "synthetic": EXAMPLES,
            "backbone": "mobilenetv2",
            "device": "cpu",
            "precision": "fp32",
            "resolution": SIDE,
            "crop": SEEN,
            "batch_size": BATCH,
            "epochs": passes,
            "lr_backbone": 5e-4,
            "schedule": "cosine",
            "keep": 1,
            "checkpoint_interval": 250,
            "valid_examples": 0,
            "log_images_interval": 10**6,
        },
    )


def train(config: RunConfig) -> None:
    """Train one network, or go on with it."""
    store = Store.open(config.storage, config.name)
    prepared = open_run(config, store)
    feed = LocalFeed(Drawn(Path(config.storage)), prepared.order, prepared.geometry)
    run(prepared, Worker(World(), CPU), feed=feed, store=store, host=Host())


def changed(truth: Composed, change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and captured background as a network gets them."""
    src, bgr = truth.src * change.scene, truth.bgr * change.scene
    return src, (bgr * change.gain + change.offset).clamp(0, 1)


@torch.no_grad()
def measure(network: MattingBase, truths: Iterable[Composed]) -> Scores:
    """The mean of each metric over the examples, by change."""
    found: dict[tuple[Change, str], list[float]] = {}
    for truth, change in itertools.product(truths, CHANGES):
        pha = network(*changed(truth, change))[0]
        for name, value in alpha_metrics(pha, truth.pha, METRICS).items():
            found.setdefault((change, name), []).append(float(value))
    return {c: {m: statistics.fmean(found[c, m]) for m in METRICS} for c in CHANGES}


def measured(config: RunConfig, test: int) -> Scores:
    """Measure the network that was trained."""
    selected = read_weights(f"{config.storage}/{config.name}")
    source = SourceSpec.synthetic(test, TEST_PICTURES, SIDE, test).open()
    forward = ForwardPass(
        stage="base",
        precision="fp32",
        seed=TEST_PICTURES,
        resolution=SEEN,
        device=CPU,
    )
    examples = spread(source, "valid", TEST_PICTURES, None, Geometry("base", SEEN))
    truths = (forward.compose(batch) for batch in examples.batches())
    return measure(Candidate.of(selected, CPU, "fp32").network, truths)


def learnt(folder: str, passes: float, test: int, case: tuple[Recipe, int]) -> tuple[float, Scores]:
    """Train and measure the network of a recipe and a seed; returns the seconds that it took, too."""
    began = time.monotonic()
    torch.set_num_threads(1)
    config = config_of(folder, *case, passes)
    train(config)
    return time.monotonic() - began, measured(config, test)


def shown(values: Sequence[float]) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{statistics.fmean(values):7.3f} +-{statistics.stdev(values):6.3f}"


def table(scores: dict[tuple[Recipe, int], Scores]) -> str:
    """One line a change: each metric with each recipe, and how they compare."""
    titles = [f"{m.upper()}, recipe {r}" for m in METRICS for r in COMPARED]
    lines = [f"{'captured background':<38}" + "".join(f"{t:>18}" for t in (*titles, "SAD 2 / 1"))]
    for change in CHANGES:
        values = {
            (m, r): [scores[r, seed][change][m] for seed in SEEDS]
            for m in METRICS
            for r in COMPARED
        }
        ratio = statistics.fmean(values["sad", "2"]) / statistics.fmean(values["sad", "1"])
        cells = [shown(values[m, r]) for m in METRICS for r in COMPARED]
        lines.append(f"{change!s:<38}" + "".join(f"{c:>18}" for c in cells) + f"{ratio:>18.2f}")
    return "\n".join(lines)


def main() -> None:
    """Train all, measure all, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--passes", type=float, default=1, help="over the 4,000 examples")
    parser.add_argument("--test", type=int, default=80, help="examples to measure with")
    parser.add_argument("--jobs", type=int, default=3, help="networks at a time")
    parser.add_argument("--folder", type=Path, help="keep the runs there")
    given = parser.parse_args()
    cases = [(recipe, seed) for seed in SEEDS for recipe in COMPARED]
    with tempfile.TemporaryDirectory() as temporary:
        folder, began = str(given.folder or temporary), time.monotonic()
        Drawn.draw(Path(folder))
        with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
            done = pool.map(partial(learnt, folder, given.passes, given.test), cases)
            scores = {}
            for (recipe, seed), (seconds, found) in zip(cases, done, strict=True):
                scores[recipe, seed] = found
                sads = " ".join(f"{each['sad']:.3f}" for each in found.values())
                print(f"recipe {recipe}, seed {seed}: {seconds:.0f} s, SAD {sads}", flush=True)
        print(table(scores))
        print(f"in all {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
