"""Measuring networks on examples made as validation makes them: the same pictures for all, one example at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from raymat.config.sections import Precision, Stage
from raymat.config.values import Range
from raymat.data.batch import Geometry, MicroBatch
from raymat.data.composite import Composed
from raymat.data.decode import OpenImage
from raymat.data.feed import LocalFeed
from raymat.data.sample_order import Example, SampleOrder
from raymat.data.source import Source
from raymat.errors import DataError
from raymat.model.matting import MattingBase
from raymat.model.ops import widened
from raymat.model.pretrained import load_matching
from raymat.train.optim.forward import compose, loss_of
from raymat.train.optim.mixed_precision import autocast, parameter_dtype
from raymat.train.run.weights_reference import Selected, build_network
from raymat.train.validation.evaluator import mean_of
from raymat.train.validation.matting_metrics import ALPHA_METRICS, alpha_metrics, foreground_mse

Split = Literal["valid", "train"]
METRICS = ("loss", *ALPHA_METRICS, "fgr_mse")
"""What is measured of each example, in the order of the tables; of all the least is the best."""

DECODE_THREADS = 2
"""Make pictures beside the network; each holds two examples ahead at most."""

Values = dict[str, float | None]
"""By metric; None: there is no such number, as the loss of an ensemble."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What is measured on: `count` examples, spread evenly over a split of `source`, as a run with `seed` validates."""

    source: Source
    split: Split
    seed: int
    count: int
    geometry: Geometry

    def batches(self) -> Iterator[MicroBatch]:
        """Batches of one example each, made ahead in threads. DataError: pictures cannot be had."""
        source = self.source if self.split == "valid" else _TrainingSplit(self.source)
        order = SampleOrder(
            seed=self.seed,
            pairs=1,
            backgrounds=1,
            batch_size=1,
            crop=Range(4, 4),
            total_examples=1,
            valid_pairs=source.valid_pairs,
            valid_backgrounds=source.valid_backgrounds,
            valid_examples=self.count,
        )
        return LocalFeed(source, order, self.geometry, threads=DECODE_THREADS).valid()

    def name_of(self, example: Example) -> str:
        """Of its pair, for people."""
        return self.source.name_of(example.pair, valid=self.split == "valid")


def spread(
    source: Source, split: Split, seed: int, count: int | None, geometry: Geometry
) -> Examples:
    """`count` examples, or as many as there are pairs if that is less or None.

    Raises:
        DataError: the split is empty.
    """
    train = split == "train"
    pairs = source.pairs if train else source.valid_pairs
    if not pairs or not (source.backgrounds if train else source.valid_backgrounds):
        raise DataError(f"the dataset has nothing to evaluate on in {split}/: use another --split")
    number = pairs if count is None else min(count, pairs)
    return Examples(source=source, split=split, seed=seed, count=number, geometry=geometry)


class _TrainingSplit:
    """A source whose pictures to validate on are those to train on."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.pairs = self.valid_pairs = source.pairs
        self.backgrounds = self.valid_backgrounds = source.backgrounds
        self.fetch_ahead = source.fetch_ahead

    def open_pair(self, index: int, valid: bool = False) -> tuple[OpenImage, OpenImage]:
        return self._source.open_pair(index)

    def open_background(self, index: int, valid: bool = False) -> OpenImage:
        return self._source.open_background(index)

    def name_of(self, index: int, valid: bool = False) -> str:
        return self._source.name_of(index)


@dataclass(frozen=True)
class Candidate:
    """A network, ready on its device."""

    label: str
    stage: Stage
    network: MattingBase
    facts: dict[str, Any] = field(default_factory=dict)
    """Where it comes from, JSON-able."""


def contender(selected: Selected, device: torch.device, precision: Precision) -> Candidate:
    """The network with these weights as a run of that precision validates it. Raises WeightsError as `build_network`."""
    network = build_network(selected)
    dtype = parameter_dtype(precision)
    if dtype != torch.float32:
        load_matching(network.to(dtype), selected.weights, selected.what)
    network.to(device)
    if _channels_last(device):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    facts = {
        "run": selected.run_url,
        "checkpoint": None if selected.checkpoint is None else str(selected.checkpoint),
        "step": selected.step,
        "stage": selected.stage,
        "ema": selected.ema,
    }
    return Candidate(selected.what, selected.stage, network, facts)


@dataclass(frozen=True, eq=False)
class Measured:
    """One example: `values` and `alphas` for each contender, then for their ensemble if there is one."""

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
    contenders: Sequence[Candidate],
    examples: Examples,
    *,
    device: torch.device,
    precision: Precision,
    ensemble: bool = False,
) -> Iterator[Measured]:
    """Each example in order, measured with all networks. In memory are the networks and a few examples.

    `ensemble`: also the mean of all predictions of alpha and of foreground. It has no loss: it predicts no error.

    Raises:
        DataError: pictures cannot be had.
    """
    with closing(examples.batches()) as batches:  # type: ignore[type-var]
        for batch in batches:
            truth = compose(
                batch,
                seed=examples.seed,
                resolution=examples.geometry.resolution,
                device=device,
                dtype=parameter_dtype(precision),
                channels_last=_channels_last(device),
            )
            yield _measured(contenders, batch, truth, precision, ensemble)


@torch.no_grad()
def _measured(
    contenders: Sequence[Candidate],
    batch: MicroBatch,
    truth: Composed,
    precision: Precision,
    ensemble: bool,
) -> Measured:
    predictions: list[tuple[Tensor, Tensor]] = []
    values: list[Values] = []
    for one in contenders:
        with autocast(precision, truth.src.device):
            outputs = one.network(truth.src, truth.bgr)
        predictions.append((widened(outputs[0]), widened(outputs[1])))
        loss = float(loss_of(one.stage)(outputs, truth))
        values.append(_values(*predictions[-1], truth, loss))
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
    """As training has it."""
    return device.type == "cuda"


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that are there, in their order, exactly rounded; None where there are none or it is not finite."""
    there = [value for value in values if value is not None]
    return mean_of(there) if there else None
