"""Tells an export that is wrong from one that rounds: the network in float32 is itself not what it is in float64.

A network that has hardly been trained computes with values of hundreds of which it clamps all but 0 to 1, and then rounds
in the fourth digit, as any export of it does, and each in its own way. So where an export differs by more than the
tolerance, both are compared with the network in float64: the export has to be about as near to it as the network is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from raymat.export.formats import Run, outputs_of
from raymat.model.matting import MattingBase, MattingRefine

TIMES = 4
"""How many times as far from float64 as the network an export may be; at differences of over 1e-4 it was 2.4 times at most."""
MEAN = 0.01
"""Part of the tolerance that a mean over all pixels may always be away from float64."""


@dataclass(frozen=True)
class Rounding:
    """How far the network in float32 and its export are from the network in float64, in one output."""

    network: float
    """The largest distance; of an output that exceeds 1, relative to the largest value."""
    export: float
    network_mean: float
    """The mean over all values, which tells a small fault everywhere from a few pixels on an edge."""
    export_mean: float

    def explains(self, tolerance: float) -> bool:
        """Whether the export is as near to float64 as the network's own rounding lets one expect."""
        return self.export <= max(tolerance, TIMES * self.network) and self.export_mean <= max(
            MEAN * tolerance, TIMES * self.network_mean
        )


def measure_rounding(
    network: MattingBase, run: Run, src: Tensor, bgr: Tensor
) -> dict[str, Rounding]:
    """Compare both with the network in float64, by output, all refining the patches that the export chose."""
    exact_network = copy.deepcopy(network).double()
    with torch.no_grad():
        found = run(src, bgr)
        with refining(network, found[-1]), refining(exact_network, found[-1].double()):
            mine = network(src, bgr)
            exact = exact_network(src.double(), bgr.double())
    return {
        name: _rounding(m, f, e)
        for name, m, f, e in zip(outputs_of(network), mine, found, exact, strict=True)
    }


def _rounding(mine: Tensor, found: Tensor, exact: Tensor) -> Rounding:
    scale = max(1.0, float(exact.abs().max()))
    network, export = ((one - exact).abs() / scale for one in (mine, found))
    return Rounding(
        float(network.max()), float(export.max()), float(network.mean()), float(export.mean())
    )


@contextmanager
def refining(network: MattingBase, ref: Tensor) -> Iterator[None]:
    """Let a network that refines do so with these patches, (n, 1, H/4, W/4) of 0 and 1, whatever the error says."""
    if not isinstance(network, MattingRefine) or network.refiner.mode == "full":
        yield
        return
    # Into the instance, so that the class's own method comes back when it is taken away.
    vars(network.refiner)["select"] = lambda err: ref
    try:
        yield
    finally:
        del vars(network.refiner)["select"]
