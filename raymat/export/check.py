"""Checks that an exported network does what the network does: compares outputs at several sizes and on extreme pictures.

A runtime adds in another order, so predicted errors that are almost equal may rank in another order, and sampling then
refines another patch. That is no fault as long as the patch was a tie: its error must lie within the tolerance of where
the network drew the line, or twice as far from it as any error differs. The full resolution is then compared with the
network refining the patches that the export chose.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raymat.console import size
from raymat.errors import ExportError
from raymat.export.check_memory import available_memory, bytes_needed
from raymat.export.formats import Run, outputs_of
from raymat.export.own_rounding import Rounding, measure_rounding, refining
from raymat.model.matting import MattingBase, MattingRefine
from raymat.model.ops import resize
from raymat.model.refiner import PATCH

SMALL = (48, 64)
ODD = (324, 84)
"""Height and width: a tall strip whose quarters are odd."""
ROUNDS = 3
"""Runs per case, of which the shortest gives the latency; at the largest size there is only the one that is compared."""


@dataclass(frozen=True)
class Case:
    """A pair of pictures to compare on."""

    kind: str
    """picture, all foreground, all background, or equal."""
    batch: int
    height: int
    width: int

    @property
    def size(self) -> str:
        """As "2 x 324 x 84"."""
        return f"{self.batch} x {self.height} x {self.width}"


@dataclass(frozen=True)
class CheckOutcome:
    """The comparison on one case."""

    case: Case
    differences: dict[str, float]
    """Largest difference of each output; of outputs that may exceed 1, relative to the largest value."""
    others: int
    """Patches that only one side refined."""
    eager_seconds: float
    export_seconds: float
    rounding: dict[str, Rounding] | None = None
    """How the network itself rounds in each output, if that had to explain a difference."""


def cases(network: MattingBase, large: tuple[int, int]) -> list[Case]:
    """Return the cases to check on: three sizes, and three extremes at the middle one."""
    extremes = ("all foreground", "all background", "equal")
    return [
        Case("picture", 1, *SMALL),
        Case("picture", 2, *ODD),
        *(Case(kind, 1, *ODD) for kind in extremes),
        Case("picture", 1, *large),
    ]


def pictures(case: Case) -> tuple[Tensor, Tensor]:
    """Make src and bgr of a case, (n, 3, H, W) in 0..1: a soft disc before a smooth background with noise, always the same."""
    generator = torch.Generator().manual_seed(1)

    def smooth() -> Tensor:
        low = torch.rand((case.batch, 3, 5, 5), generator=generator)
        return resize(low, (case.height, case.width))

    def noise() -> Tensor:
        shape = (case.batch, 3, case.height, case.width)
        return 0.02 * torch.randn(shape, generator=generator)

    bgr, fgr = (smooth() + noise()).clamp(0, 1), (smooth() + noise()).clamp(0, 1)
    if case.kind == "equal":
        return bgr, bgr.clone()
    if case.kind == "all foreground":
        return fgr, bgr
    if case.kind == "all background":
        return (bgr + noise()).clamp(0, 1), bgr
    rows = torch.linspace(-1, 1, case.height)[:, None]
    distance = torch.hypot(rows, torch.linspace(-1, 1, case.width)[None])
    pha = ((0.6 - distance) * 8 + 0.5).clamp(0, 1)
    return fgr * pha + bgr * (1 - pha), bgr


def check(
    network: MattingBase,
    run: Run,
    what: Sequence[Case],
    tolerance: float,
    own_rounding: bool = True,
) -> tuple[CheckOutcome, ...]:
    """Compare the network and its export on each case.

    `own_rounding`: let an export differ by more than `tolerance` where the network itself does so from its result in
    float64 (`raymat.export.own_rounding`).

    Raises:
        ExportError: an output differs by more than that, or the network itself gives none that is finite.
    """
    outcomes = []
    for case in what:
        outcome = compare(network, run, case, tolerance)
        if over := _over(outcome, tolerance):
            rounding = _explained(network, run, outcome, over, tolerance) if own_rounding else None
            if rounding is None:
                told = _told(outcome, over[0], tolerance)
                raise ExportError(f"the export is not the network: {told}: it was removed")
            outcome = replace(outcome, rounding=rounding)
        outcomes.append(outcome)
    return tuple(outcomes)


def _over(outcome: CheckOutcome, tolerance: float) -> list[str]:
    """Name the outputs that differ by more than they may."""
    found = outcome.differences
    # Errors that differ by so much may rank in another order where they are twice that apart.
    most = {"ref_sm": max(tolerance, 2 * found.get("err_sm", 0.0))}
    return [name for name, one in found.items() if not one <= most.get(name, tolerance)]


def _explained(
    network: MattingBase, run: Run, outcome: CheckOutcome, over: Sequence[str], tolerance: float
) -> dict[str, Rounding] | None:
    """Return how the network itself rounds if that explains what these outputs differ by; None for what no rounding explains.

    Raises:
        ExportError: it does not explain it, or cannot be measured.
    """
    case = outcome.case
    if "ref_sm" in over or not all(math.isfinite(outcome.differences[name]) for name in over):
        return None
    need = case.batch * bytes_needed(network, case.height, case.width, float64=True)
    if need > available_memory():
        told = _told(outcome, over[0], tolerance)
        raise ExportError(
            f"the export may not be the network: {told}; whether the network itself rounds so takes {size(need)} of memory "
            "to see: it was removed; choose less by --check-size"
        )
    rounding = measure_rounding(network, run, *pictures(case))
    for name in over:
        if not rounding[name].explains(tolerance):
            told = _told(outcome, name, tolerance)
            raise ExportError(
                f"the export is not the network: {told}, the network's own rounding is {rounding[name].network:.3g}: "
                "it was removed"
            )
    return rounding


def _told(outcome: CheckOutcome, name: str, tolerance: float) -> str:
    case = outcome.case
    difference = outcome.differences[name]
    return (
        f"{name} differs by {difference:.3g} at {case.size} ({case.kind}), tolerance {tolerance:g}"
    )


def compare(network: MattingBase, run: Run, case: Case, tolerance: float) -> CheckOutcome:
    """Compare both on one case. A difference is infinite where shapes differ or a value is not a number."""
    src, bgr = pictures(case)
    names = outputs_of(network)
    rounds = 1 if case.height * case.width > ODD[0] * ODD[1] else ROUNDS
    with torch.no_grad():
        expected, eager_seconds = _timed(network, src, bgr, rounds)
        found, export_seconds = _timed(run, src, bgr, rounds)
        for name, tensor in zip(names, expected, strict=True):
            if not tensor.isfinite().all():
                raise ExportError(
                    f"the network itself gives {name} that is not finite at {case.size}: export an earlier checkpoint"
                )
        shapes = [tuple(t.shape) for t in expected]
        if [tuple(t.shape) for t in found] != shapes:
            return CheckOutcome(
                case, dict.fromkeys(names, math.inf), 0, eager_seconds, export_seconds
            )
        others, gap = 0, 0.0
        if isinstance(network, MattingRefine):
            slack = max(tolerance, 2 * _difference(expected[-2], found[-2]))
            others, gap = _other_patches(network, expected, found[-1], slack)
            if others:
                with refining(network, found[-1]):
                    expected = network(src, bgr)
    differences = {n: _difference(e, f) for n, e, f in zip(names, expected, found, strict=True)}
    if others:
        differences["ref_sm"] = gap
    return CheckOutcome(case, differences, others, eager_seconds, export_seconds)


def _timed(
    run: Run | MattingBase, src: Tensor, bgr: Tensor, rounds: int
) -> tuple[tuple[Tensor, ...], float]:
    """Return the last answer, since TorchScript optimises after the first, and the shortest time in seconds."""
    answer, shortest = None, math.inf
    for _ in range(rounds):
        began = time.perf_counter()
        answer = run(src, bgr)
        shortest = min(shortest, time.perf_counter() - began)
    assert answer is not None
    return answer, shortest


def _difference(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference, relative to the largest value if that is over 1; infinite if any is not a number."""
    if found.dtype != expected.dtype or not found.isfinite().all():
        return math.inf
    largest = max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) / largest


# Which patches were refined.


def _other_patches(
    network: MattingRefine, expected: tuple[Tensor, ...], ref: Tensor, slack: float
) -> tuple[int, float]:
    """Count the patches that only one side refined; also returns how far their error lies from the line, at most.

    The distance is infinite if the export refined too few patches, or too many.
    """
    mine = expected[-1]
    if bool((ref == mine).all()):
        return 0, 0.0
    refiner = network.refiner
    if refiner.mode == "full" or bool(((ref != 0) & (ref != 1)).any()):
        return int((ref != mine).sum()), math.inf
    err = resize(expected[-2], ref.shape[2:]).flatten(1)
    other = (ref != mine).flatten(1)
    if refiner.mode == "thresholding":
        gap = (err - refiner.threshold).abs()
    else:
        count = min(refiner.sample_pixels // PATCH**2, err.shape[1])
        number = ref.flatten(1).sum(1)
        least = (err > slack).sum(1).clamp(max=count)
        if bool(((number > count) | (number < least)).any()):
            return int(other.sum()), math.inf
        line = err.topk(count, dim=1).values[:, -1:]
        # Patches without any error are not refined, which is the other line.
        gap = torch.minimum((err - line).abs(), err)
    return int(other.sum()), float(gap[other].max())
