"""What the stages share: steps on the device, made batches, and how long they take there."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from raymat.config.sections import ModelConfig, Precision, Stage
from raymat.data.batch import MicroBatch
from raymat.data.sample_order import Example
from raymat.distributed.world import World
from raymat.model.matting import build
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim.forward import ForwardPass

RATES = {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4, "refiner": 3e-4}
BACKBONES = ("resnet50", "resnet101", "mobilenetv2")


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def made_batch(step: int, side: int, examples: int = 4) -> MicroBatch:
    """Return noise, as one worker's share of a step: (examples, side, side, 3) and (examples, side, side), 0 to 255."""
    rng = np.random.Generator(np.random.Philox(key=[step, side]))
    who = tuple(Example(step * examples + i, i, i) for i in range(examples))
    fgr, bgr = (rng.integers(0, 256, (examples, side, side, 3), np.uint8) for _ in range(2))
    pha = rng.integers(0, 256, (examples, side, side), np.uint8)
    return MicroBatch(step, who, fgr, pha, bgr, (), True)


def made_step(
    stage: Stage,
    device: torch.device,
    precision: Precision,
    *,
    backbone: Any = "mobilenetv2",
    side: int = 64,
    world: World | None = None,
    **model: Any,
) -> TrainStep:
    """Return a step of new weights, the same on every device."""
    network = build(stage, ModelConfig(backbone=backbone, **model), 0)
    forward = ForwardPass(
        stage=stage, precision=precision, seed=0, resolution=side, device=device,
        channels_last=device.type == "cuda",
    )  # fmt: skip
    return TrainStep(network, forward, world or World())


def seconds_of(
    work: Callable[[int], object], device: torch.device, warm: int, times: int
) -> dict[str, float]:
    """Return the median and the longest time of `work(number)` in ms, waited for, after `warm` calls."""
    found = []
    for number in range(warm + times):
        synchronize(device)
        began = time.perf_counter()
        work(number)
        synchronize(device)
        found += [1e3 * (time.perf_counter() - began)] if number >= warm else []
    return {"median_ms": round(statistics.median(found), 2), "worst_ms": round(max(found), 2)}


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest value."""
    a, b = one.detach().double().cpu(), other.detach().double().cpu()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
