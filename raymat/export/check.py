"""Checks that an exported network does what the network does: compares outputs at several sizes and on extreme pictures.

A runtime adds in another order, so predicted errors that are almost equal may rank in another order, and sampling then
refines another patch. That is no fault as long as the patch was a tie: its error must lie within the tolerance of where
the network drew the line. The full resolution is then compared with the network refining the patches that the export
chose.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from raymat.errors import ExportError
from raymat.export.formats import Run, outputs_of
from raymat.model.matting import MattingBase, MattingRefine
from raymat.model.ops import resize
from raymat.model.refiner import PATCH

SMALL = (48, 64)
ODD = (324, 84)
"""Height and width: a tall strip whose quarters are odd."""
LARGE = ((2160, 3840), (1440, 2560), (1080, 1920), (720, 1280), (540, 960))
"""From 4K downwards, for the refiner; a base network sees a quarter of such a picture."""
LARGE_BASE = LARGE[-1:]
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
    network: MattingBase, run: Run, what: Sequence[Case], tolerance: float
) -> tuple[CheckOutcome, ...]:
    """Compare the network and its export on each case.

    Raises:
        ExportError: an output differs by more than `tolerance`, or the network itself gives none that is finite.
    """
    outcomes = []
    for case in what:
        outcome = compare(network, run, case, tolerance)
        for name, difference in outcome.differences.items():
            if not difference <= tolerance:
                raise ExportError(
                    f"the export is not the network: {name} differs by {difference:.3g} at {case.size} ({case.kind}), "
                    f"tolerance {tolerance:g}: it was removed"
                )
        outcomes.append(outcome)
    return tuple(outcomes)


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
            others, gap = _other_patches(network, expected, found[-1], tolerance)
            if others:
                with _refining(network, found[-1]):
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


@contextmanager
def _refining(network: MattingRefine, ref: Tensor) -> Iterator[None]:
    """Let the network refine these patches, (n, 1, H/4, W/4) of 0 and 1, whatever the error says."""
    # Into the instance, so that the class's own method comes back when it is taken away.
    vars(network.refiner)["select"] = lambda err: ref
    try:
        yield
    finally:
        del vars(network.refiner)["select"]


def _other_patches(
    network: MattingRefine, expected: tuple[Tensor, ...], ref: Tensor, tolerance: float
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
        least = (err > tolerance).sum(1).clamp(max=count)
        if bool(((number > count) | (number < least)).any()):
            return int(other.sum()), math.inf
        line = err.topk(count, dim=1).values[:, -1:]
        # Patches without any error are not refined, which is the other line.
        gap = torch.minimum((err - line).abs(), err)
    return int(other.sum()), float(gap[other].max())


# What fits into memory.

BYTES = {"base": 1600, "full": 1000, "sampling": 700, "thresholding": 2500}
"""Upper estimates of peak bytes per pixel, with every patch over the threshold; benchmarks/export_check.py --memory
measures them."""


def bytes_needed(network: MattingBase, height: int, width: int) -> int:
    """Estimate the bytes that checking at this size takes, beside the weights."""
    kind = network.refiner.mode if isinstance(network, MattingRefine) else "base"
    return BYTES[kind] * height * width


def largest(network: MattingBase, available: float) -> tuple[int, int]:
    """Choose the largest size to check: 4K (a base network: a quarter of that), or less if half of `available` bytes is less."""
    sizes = LARGE if isinstance(network, MattingRefine) else LARGE_BASE
    fitting = [s for s in sizes if bytes_needed(network, *s) <= available / 2]
    return fitting[0] if fitting else sizes[-1]


def available_memory() -> float:
    """Return the bytes that this machine, and the container around this process, can still give."""
    return min(_free_of_machine(), _free_of_container())


def _free_of_machine() -> float:
    try:
        lines = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_of_container() -> float:
    """Read the limit of control groups, version 2; infinite without one."""
    try:
        most, now = (_read(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        return math.inf if most.strip() == "max" else int(most) - int(now)
    except (OSError, ValueError):
        return math.inf


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
