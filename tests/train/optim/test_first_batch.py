"""The first batch that fused kernels compose is compared with torch's operations, and a wrong one ends the run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from raymat.data.batch import MicroBatch
from raymat.data.composite import Composed, Way
from raymat.data.sample_order import Example
from raymat.errors import TrainingError
from raymat.train.optim.first_batch import CheckedCompositing
from raymat.train.optim.forward import ForwardPass

CPU = torch.device("cpu")
OPTIONS = {"stage": "base", "precision": "fp32", "seed": 0, "resolution": 16, "device": CPU}


@dataclass(frozen=True, kw_only=True)
class Fused(ForwardPass):
    """Stands for fused kernels on a card: torch's operations, and what goes wrong."""

    off: float = 0.0
    """Added to one value."""
    fault: Exception | None = None
    asked: list[Way | None] = field(default_factory=list)

    @property
    def way(self) -> Way:
        return "fused"

    def compose(self, batch: MicroBatch, way: Way | None = None) -> Composed:
        self.asked.append(way)
        composed = super().compose(batch, "together")
        if way is None and self.fault is not None:
            raise self.fault
        if way is None and batch.examples:
            composed.bgr[-1, 2, 3, 5] += self.off
        return composed


def batch(n: int = 2) -> MicroBatch:
    examples = tuple(Example(i, i, i) for i in range(n))
    fgr, bgr = (np.full((n, 16, 16, 3), 100, np.uint8) for _ in range(2))
    return MicroBatch(0, examples, fgr, np.full((n, 16, 16), 99, np.uint8), bgr, (), train=True)


def test_the_first_batch_alone_is_composed_both_ways() -> None:
    forward = Fused(**OPTIONS)
    compose = CheckedCompositing(forward)
    for n in (0, 2, 2):  # a worker without a share has nothing to compare
        compose(batch(n))
    assert forward.asked == [None, None, "together", None]


def test_what_rounding_makes_goes_through() -> None:
    forward = Fused(**OPTIONS, off=0.001)
    composed = CheckedCompositing(forward)(batch())
    assert torch.equal(composed.bgr, forward.compose(batch()).bgr)


@pytest.mark.parametrize("off", [0.01, float("nan")])
def test_another_picture_ends_the_run_and_names_the_way_out(off: float) -> None:
    compose = CheckedCompositing(Fused(**OPTIONS, off=off))
    with pytest.raises(
        TrainingError, match=r"^cpu: .* pictures are (0\.01|nan) of 1 off .*--recipe 3"
    ):
        compose(batch())


def test_a_kernel_that_fails_ends_the_run_and_names_the_way_out() -> None:
    fault = RuntimeError("CUDA error: an illegal\nmemory access")
    with pytest.raises(
        TrainingError, match=r"fail \(CUDA error: an illegal memory access\).*--recipe 3"
    ):
        CheckedCompositing(Fused(**OPTIONS, fault=fault))(batch())


def test_too_little_memory_is_not_taken_for_a_wrong_kernel() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        CheckedCompositing(Fused(**OPTIONS, fault=torch.OutOfMemoryError("too little")))(batch())


def test_other_ways_are_not_compared() -> None:
    forward = ForwardPass(**OPTIONS)  # type: ignore[arg-type]
    assert forward.way == "one by one"
    assert torch.equal(CheckedCompositing(forward)(batch()).src, forward.compose(batch()).src)
