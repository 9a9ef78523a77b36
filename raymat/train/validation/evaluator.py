"""Validation: every example by itself, and means that do not depend on who evaluated what.

An example is a batch of its own, whoever holds it, so that its numbers are the same to the bit; and the mean is the
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

from raymat.config.sections import Precision, Stage
from raymat.data.batch import MicroBatch
from raymat.data.feed import Feed
from raymat.data.sample_order import digest_lanes, digest_text
from raymat.distributed.collectives import Group
from raymat.train.optim.forward import compose, loss_of
from raymat.train.optim.mixed_precision import autocast, parameter_dtype
from raymat.train.validation.matting_metrics import alpha_metrics

Values = dict[str, float]
"""What was measured of one example, by name: loss and metrics."""


class Evaluator:
    """A network's loss and metrics of single examples."""

    def __init__(
        self,
        network: nn.Module,
        *,
        stage: Stage,
        precision: Precision,
        seed: int,
        resolution: int,
        device: torch.device,
        channels_last: bool,
        metrics: Sequence[str],
    ) -> None:
        """`network` lies on `device` in its precision and memory format; `metrics`: names of `alpha_metrics`."""
        self.network = network
        self._loss, self._metrics = loss_of(stage), tuple(metrics)
        self._precision: Precision = precision
        self._seed, self._resolution = seed, resolution
        self._device, self._channels_last = device, channels_last

    @torch.no_grad()
    def __call__(self, batch: MicroBatch) -> dict[int, Values]:
        """By example number; leaves the network in evaluation mode. Not a collective."""
        self.network.eval()
        return {one.examples[0].number: self._examine(one) for one in singles(batch)}

    def _examine(self, one: MicroBatch) -> Values:
        truth = compose(
            one,
            seed=self._seed,
            resolution=self._resolution,
            device=self._device,
            dtype=parameter_dtype(self._precision),
            channels_last=self._channels_last,
        )
        with autocast(self._precision, self._device):
            outputs = self.network(truth.src, truth.bgr)
        found: dict[str, Tensor] = {"loss": self._loss(outputs, truth)}
        if self._metrics:
            found |= alpha_metrics(outputs[0], truth.pha, self._metrics)
        return {name: float(value.double()) for name, value in found.items()}


@dataclass(frozen=True)
class ValidationResult:
    """Means over all validation examples, None where one is not finite; how many they were, and their digest."""

    loss: float | None
    metrics: dict[str, float | None]
    """All but the loss, by name."""
    count: int
    digest: str


def validate(
    examiners: Mapping[str, Evaluator],
    feed: Feed,
    group: Group,
    see: Callable[[MicroBatch], None],
    between: Callable[[], None] = lambda: None,
) -> ValidationResult:
    """What the validation examples say of each network in `examiners`. Called by all workers.

    Names are those of the metrics behind the examiner's key: {"": ..., "ema_": ...}. `see` is shown each batch.
    `between` is called before each, on all workers equally often; what it raises ends this.
    """
    mine: dict[int, Values] = {}
    lanes = digest_lanes(())
    for batch in feed.valid():
        between()
        see(batch)
        lanes = lanes + digest_lanes(batch.examples)
        mine |= examine(examiners, batch)
    parts = group.gather((mine, lanes.tolist()))
    values = {number: found for part, _ in parts for number, found in part.items()}
    digest = digest_text(map(sum, zip(*(each for _, each in parts), strict=True)))
    means = mean_values(values)
    return ValidationResult(means.pop("loss", None), means, len(values), digest)


def examine(examiners: Mapping[str, Evaluator], batch: MicroBatch) -> dict[int, Values]:
    """What each of `examiners` measures of each example, its key before the names; by example number."""
    found: dict[int, Values] = {example.number: {} for example in batch.examples}
    for prefix, examiner in examiners.items():
        for number, values in examiner(batch).items():
            found[number] |= {f"{prefix}{name}": value for name, value in values.items()}
    return found


def mean_values(values: Mapping[int, Values]) -> dict[str, float | None]:
    """The mean of each name over the examples, by number; None where an example's is not finite."""
    numbers = sorted(values)
    names = values[numbers[0]] if numbers else ()
    return {name: mean_of([values[number][name] for number in numbers]) for name in names}


def finite(value: float) -> float | None:
    """`value`, or None where it is not finite: JSON has no such numbers."""
    return value if math.isfinite(value) else None


def mean_of(values: Sequence[float]) -> float | None:
    """The mean, correctly rounded; None where one of `values` is not finite."""
    return finite(math.fsum(values) / len(values)) if all(map(math.isfinite, values)) else None


def singles(batch: MicroBatch) -> Iterator[MicroBatch]:
    """Each example of `batch` as a batch."""
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
