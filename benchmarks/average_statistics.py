"""Which batch-norm statistics belong to averaged weights: averaged ones, the newest ones, or ones made anew.

A base network is trained on procedural pictures with an average of its weights. At some steps the validation loss of the
averaged weights is printed with three sets of batch-norm statistics: averaged as the weights are (what checkpoints hold), those
of the network in training, and recomputed over training batches with the averaged weights.

    python benchmarks/average_statistics.py [--decay 0.99] [--at 50 100 200] [--side 64]
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from raymat.config.run import build
from raymat.data.batch import Geometry, MicroBatch
from raymat.data.dataset.source import SourceSpec
from raymat.data.feed import LocalFeed
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World
from raymat.model import matting
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim.forward import ForwardPass
from raymat.train.optim.lr_schedule import rates

PAIRS, BATCH, VALID = 64, 8, 16


def evaluate(step: TrainStep, batches: list[MicroBatch], prefix: str = "ema_") -> float:
    """The mean loss of the averaged weights, or ("") of those in training."""
    evaluator = step.evaluators(())[prefix]
    losses = [values["loss"] for batch in batches for values in evaluator(batch).values()]
    return sum(losses) / len(losses)


@torch.no_grad()
def recompute(step: TrainStep, batches: list[MicroBatch]) -> None:
    """Statistics of the averaged network as plain means over training batches, under training's conditions."""
    assert step.ema is not None
    network = step.ema.network.train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for batch in batches:
        composed = step.forward.compose(batch)
        matting.set_dropout_seeds(network, step._dropout_seeds(batch))
        network(composed.src, composed.bgr)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def compare(step: TrainStep, valid: list[MicroBatch], training: list[MicroBatch]) -> list[float]:
    """Losses with averaged, newest and recomputed statistics, and of the weights in training; changes nothing."""
    assert step.ema is not None
    own, live = step.ema.tensors(), step.network.state_dict()
    saved = {name: tensor.clone() for name, tensor in own.items()}
    found = [evaluate(step, valid)]
    _copy(own, {n: t for n, t in live.items() if "running" in n})
    found.append(evaluate(step, valid))
    recompute(step, training)
    found.append(evaluate(step, valid))
    _copy(own, saved)
    return [*found, evaluate(step, valid, "")]


@torch.no_grad()
def _copy(own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    for name, tensor in given.items():
        own[name].copy_(tensor)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--decay", type=float, default=0.99)
    parser.add_argument("--at", type=int, nargs="+", default=[50, 100, 200], help="steps")
    parser.add_argument("--side", type=int, default=64, help="of a picture, in pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = build(
        "base",
        {"name": "average", "synthetic": PAIRS, "backbone": "mobilenetv2", "resolution": options.side,
         "crop": options.side, "batch_size": BATCH, "ema_decay": options.decay, "precision": "fp32"},
    )  # fmt: skip
    steps = max(options.at)
    order = SampleOrder(
        seed=0, pairs=PAIRS, backgrounds=PAIRS, batch_size=BATCH, crop=config.data.crop,
        total_examples=(steps + 16) * BATCH, valid_pairs=VALID, valid_backgrounds=VALID,
        valid_examples=VALID,
    )  # fmt: skip
    source = SourceSpec.synthetic(count=PAIRS, seed=0, size=options.side, valid_count=VALID)
    feed = LocalFeed(source.open(), order, Geometry("base", options.side))
    step = TrainStep(
        matting.build("base", config.model, 0),
        ForwardPass(
            stage="base",
            precision="fp32",
            seed=0,
            resolution=options.side,
            device=torch.device("cpu"),
        ),
        World(),
        config.optim,
    )
    valid, training = list(feed.valid()), list(feed.train(steps, steps + 16))
    print("loss of the averaged weights with statistics that are averaged, newest, recomputed;")
    print("and of the weights in training")
    for batch in feed.train(0, steps):
        step(batch, BATCH, rates(config, 0))
        if batch.step + 1 in options.at:
            told = "  ".join(f"{loss:.5f}" for loss in compare(step, valid, training))
            print(f"step {batch.step + 1:5d}: {told}", flush=True)


if __name__ == "__main__":
    main()
