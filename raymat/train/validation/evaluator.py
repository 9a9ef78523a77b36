"""Validation of a network, with results that do not depend on which worker evaluated which example.

Each example is a batch of its own, so that its numbers are the same to the bit on any worker; and the mean is the
correctly rounded sum (`math.fsum`) over the examples in their order. So a validation gives the same numbers with any
number of workers, and in another process beside training on a machine of the same kind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raymat.data.batch import MicroBatch
from raymat.data.feed import Feed
from raymat.data.sample_order import digest_lanes, digest_text
from raymat.distributed.collectives import Group
from raymat.storage.fields import Count
from raymat.train.optim.forward import ForwardPass
from raymat.train.validation.matting_metrics import alpha_metrics

Values = dict[str, float]
"""The loss and metrics of one example, by name."""


class Evaluator:
    """A network's loss and metrics of single examples."""

    def __init__(self, network: nn.Module, forward: ForwardPass, metrics: Sequence[str]) -> None:
        """Measure `network`, which `forward` has placed; `metrics`: names of `alpha_metrics`."""
        self.network = network
        self._forward, self._metrics = forward, tuple(metrics)

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> dict[int, Values]:
        """Return what was measured by example number; leaves the network in evaluation mode. Not a collective."""
        self.network.eval()
        return {one.examples[0].number: self._measure(one) for one in singles(batch)}

    def _measure(self, one: MicroBatch) -> Values:
        truth = self._forward.compose(one)
        loss, outputs = self._forward(self.network, truth)
        found: dict[str, Tensor] = {"loss": loss}
        if self._metrics:
            found |= alpha_metrics(outputs[0], truth.pha, self._metrics)
        return {name: float(value.double()) for name, value in found.items()}


@dataclass(frozen=True)
class ValidationResult:
    """Means over all validation examples, None where one is not finite; how many they were, and their digest."""

    loss: float | None
    metrics: dict[str, float | None]
    """All but the loss, by name."""
    count: Count
    digest: str


def validate(
    evaluators: Mapping[str, Evaluator],
    feed: Feed,
    group: Group,
    see: Callable[[MicroBatch], None],
    between: Callable[[], None] = lambda: None,
) -> ValidationResult:
    """Validate each network in `evaluators`. Called by all workers.

    Each metric's name has its evaluator's key in front: {"": ..., "ema_": ...}. `see` is shown each batch. `between` is
    called before each, on all workers equally often; an error that it raises ends the validation.
    """
    mine: dict[int, Values] = {}
    lanes = digest_lanes(())
    for batch in feed.valid():
        between()
        see(batch)
        lanes = lanes + digest_lanes(batch.examples)
        mine |= measure(evaluators, batch)
    parts = group.gather((mine, lanes.tolist()))
    values = {number: found for part, _ in parts for number, found in part.items()}
    digest = digest_text(map(sum, zip(*(each for _, each in parts), strict=True)))
    means = mean_values(values)
    return ValidationResult(means.pop("loss", None), means, len(values), digest)


def measure(evaluators: Mapping[str, Evaluator], batch: MicroBatch) -> dict[int, Values]:
    """Return what each evaluator measures of each example, by example number, its key in front of the names."""
    found: dict[int, Values] = {example.number: {} for example in batch.examples}
    for prefix, evaluator in evaluators.items():
        for number, values in evaluator(batch).items():
            found[number] |= {f"{prefix}{name}": value for name, value in values.items()}
    return found


def mean_values(values: Mapping[int, Values]) -> dict[str, float | None]:
    """Return the mean of each name over the examples; None where an example's value is not finite."""
    numbers = sorted(values)
    names = values[numbers[0]] if numbers else ()
    return {name: mean_of([values[number][name] for number in numbers]) for name in names}


def finite(value: float) -> float | None:
    """Return `value`, or None where it is not finite: JSON has no such numbers."""
    return value if math.isfinite(value) else None


def mean_of(values: Sequence[float]) -> float | None:
    """Return the correctly rounded mean; None where one of `values` is not finite."""
    return finite(math.fsum(values) / len(values)) if all(map(math.isfinite, values)) else None


def singles(batch: MicroBatch) -> Iterator[MicroBatch]:
    """Yield each example of `batch` as a batch."""
    for i in range(len(batch.examples)):
        at = slice(i, i + 1)
        yield dataclasses.replace(
            batch,
            examples=batch.examples[at],
            fgr=batch.fgr[at],
            pha=batch.pha[at],
            bgr=batch.bgr[at],
            replaced=tuple(r for r in batch.replaced if r.number == batch.numbers[i]),
        )
