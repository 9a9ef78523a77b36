"""Measures networks on examples made as validation makes them: the same pictures for all, one example at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from raymat.analysis.examples import Examples
from raymat.config.sections import Precision, Stage
from raymat.data.batch import MicroBatch
from raymat.data.composite import Composed
from raymat.data.sample_order import Example
from raymat.model.matting import MattingBase
from raymat.model.ops import widened
from raymat.model.pretrained import load_matching
from raymat.train.optim.forward import ForwardPass, place
from raymat.train.optim.mixed_precision import parameter_dtype
from raymat.train.run.selected_weights import Selected, build_network
from raymat.train.validation.evaluator import mean_of
from raymat.train.validation.matting_metrics import ALPHA_METRICS, alpha_metrics, foreground_mse

METRICS = ("loss", *ALPHA_METRICS, "fgr_mse")
"""Measured of each example, in the order of the tables; the lowest of each is the best."""

Values = dict[str, float | None]
"""By metric; None where there is no such number, as the loss of an ensemble."""


@dataclass(frozen=True)
class Candidate:
    """A network to measure, on its device."""

    label: str
    stage: Stage
    network: MattingBase
    facts: dict[str, Any] = field(default_factory=dict)
    """Where it comes from, JSON-able."""

    @classmethod
    def of(cls, selected: Selected, device: torch.device, precision: Precision) -> Candidate:
        """Build the network as a run of that precision validates it. Raises WeightsError as `build_network`."""
        network = build_network(selected)
        dtype = parameter_dtype(precision)
        if dtype != torch.float32:
            load_matching(network.to(dtype), selected.weights, selected.what)
        place(network, device, precision, _channels_last(device))
        facts = {
            "run": selected.run_url,
            "checkpoint": None if selected.checkpoint is None else str(selected.checkpoint),
            "step": selected.step,
            "stage": selected.stage,
            "ema": selected.ema,
        }
        return cls(selected.what, selected.stage, network, facts)


@dataclass(frozen=True, eq=False)
class Measured:
    """One example: `values` and `alphas` for each candidate, then for their ensemble if there is one."""

    batch: MicroBatch
    """Of one example."""
    truth: Composed
    alphas: list[Tensor]
    """Predicted, (1, 1, h, w) in 0..1."""
    values: list[Values]

    @property
    def example(self) -> Example:
        return self.batch.examples[0]


def measure(
    candidates: Sequence[Candidate],
    examples: Examples,
    *,
    device: torch.device,
    precision: Precision,
    ensemble: bool = False,
) -> Iterator[Measured]:
    """Measure each example in order with all networks. In memory are the networks and a few examples.

    `ensemble`: also measure the mean of all predictions of alpha and of foreground, which has no loss, since it predicts
    no error.

    Raises:
        DataError: pictures cannot be had.
    """
    forward = ForwardPass(
        stage=examples.geometry.stage,
        precision=precision,
        seed=examples.seed,
        resolution=examples.geometry.resolution,
        device=device,
        channels_last=_channels_last(device),
    )
    with closing(examples.batches()) as batches:  # type: ignore[type-var]
        for batch in batches:
            yield _measured(candidates, batch, forward, ensemble)


@torch.no_grad()
def _measured(
    candidates: Sequence[Candidate],
    batch: MicroBatch,
    forward: ForwardPass,
    ensemble: bool,
) -> Measured:
    truth = forward.compose(batch)
    predictions: list[tuple[Tensor, Tensor]] = []
    values: list[Values] = []
    for one in candidates:
        loss, outputs = replace(forward, stage=one.stage)(one.network, truth)
        predictions.append((widened(outputs[0]), widened(outputs[1])))
        values.append(_values(*predictions[-1], truth, float(loss)))
    if ensemble:
        pha, fgr = (torch.stack(both).mean(0) for both in zip(*predictions, strict=True))
        predictions.append((pha, fgr))
        values.append(_values(pha, fgr, truth, None))
    return Measured(batch, truth, [pha for pha, _ in predictions], values)


def _values(pha: Tensor, fgr: Tensor, truth: Composed, loss: float | None) -> Values:
    found: Values = {"loss": loss}
    found |= {name: float(value) for name, value in alpha_metrics(pha, truth.pha).items()}
    shown = bool((truth.pha > 0).any())
    found["fgr_mse"] = float(foreground_mse(fgr, truth.fgr, truth.pha)) if shown else None
    return found


def _channels_last(device: torch.device) -> bool:
    """Tell whether training uses the channels-last memory format on `device`."""
    return device.type == "cuda"


def mean(values: Sequence[float | None]) -> float | None:
    """Return the correctly rounded mean of the values that are not None; None if there are none or it is not finite."""
    there = [value for value in values if value is not None]
    return mean_of(there) if there else None
