"""Validation inside the training loop, spread over the workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from raymat.data.batch import MicroBatch
from raymat.data.order import digest_lanes, digest_text
from raymat.train.group import Group
from raymat.train.seams import Feed
from raymat.train.step import TrainStep


@dataclass(frozen=True)
class ValidationResult:
    """Over all workers: the mean loss (None if it is not finite), the number of examples and their digest."""

    loss: float | None
    count: int
    digest: str


def validate(
    step: TrainStep,
    feed: Feed,
    group: Group,
    see: Callable[[MicroBatch], None],
    between: Callable[[], None] = lambda: None,
) -> ValidationResult:
    """The loss of the validation examples in evaluation mode. Called by all workers.

    Sums of losses go over the workers in float64, so that the number is the same for any number of them, up to rounding.
    `see` is shown each batch. `between` is called before each, on all workers equally often; what it raises ends this.
    """
    loss = torch.zeros((), dtype=torch.float64, device=step.device)
    count, lanes = 0, digest_lanes(())
    for batch in feed.valid():
        between()
        see(batch)
        count += len(batch.examples)
        lanes = lanes + digest_lanes(batch.examples)
        if batch.examples:
            loss += step.evaluate(batch)
    total, examples, *summed = group.sums([loss, count, *lanes.tolist()])
    mean = total / examples if examples else math.nan
    return ValidationResult(finite(mean), int(examples), digest_text(summed))


def finite(value: float) -> float | None:
    """`value`, or None where it is not finite: JSON has no such numbers."""
    return value if math.isfinite(value) else None
