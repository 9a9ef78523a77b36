"""What a training step asks of its device, counted without one; and how long it takes beside the reference's way.

    python benchmarks/step_launches.py [--side 128] [--rounds 5] [--counts-only]

Counted are the operators that reach the device in one step after the first: a kernel launch each or, if fused over many
tensors, a few. Views and allocations are none. With two workers, rank 0 of a group that sends nothing is counted: what the
other would send is taken to be the same; "as on a GPU" its batch norm calls CUDA's kernels, for which others stand.
Bytes are those of all operands, as if no cache held any; of the fused compositing kernels, what each reads and writes of a
picture by its plan, once. Where Triton is installed its interpreter computes a small batch by them, which must be the other
ways'. Beside it stands the way in which the reference trains: Sobel by a convolution, patches by `unfold`, torch's batch norm
and torch's Adam (foreach, as on a GPU), without its scaler and augmentation, on the same pictures. Times are medians of steps
taken in turns, on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raymat.config.sections import ModelConfig, Stage
from raymat.data.batch import MicroBatch
from raymat.data.composite import Augmentation, Way, composite
from raymat.data.compositing.fused_batch import FusedBatch, Launch, launch_kernel
from raymat.data.compositing.fused_plan import FusedPlan
from raymat.data.compositing.noise_field import quantiles
from raymat.data.compositing.photometric_draws import draw_photometric
from raymat.data.sample_order import Example
from raymat.distributed.batchnorm_kernels import FUSED_ON
from raymat.distributed.world import World
from raymat.model import refiner
from raymat.model.matting import build, set_dropout_seeds
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim import losses
from raymat.train.optim.forward import ForwardPass

RATES = {"backbone": 1e-4, "aspp": 5e-4, "decoder": 5e-4, "refiner": 3e-4}
EXAMPLES = 4
NOTHING = {
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "lift_fresh",
    "set_",
    "_unsafe_view",
}
"""Operators that launch nothing, beside those that the dispatcher knows to be views."""
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item"}
"""Operators for whose result the host waits."""


@dataclass
class Counts(TorchDispatchMode):  # type: ignore[misc]
    """Counts operators while it is entered."""

    launches: Counter[str] = field(default_factory=Counter)
    collectives: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    operand_bytes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with _hidden(func):
            result = func(*args, **(kwargs or {}))
        space, name = func._schema.name.split("::")
        if space == "c10d":
            self.collectives[name] += 1
        elif not (func.is_view or name in NOTHING):
            self.launches[name] += 1
            self.waits[name] += name in WAITS
            operands = tree_leaves((args, kwargs, result))
            self.operand_bytes += sum(
                x.numel() * x.element_size() for x in operands if isinstance(x, Tensor)
            )
        return result

    @property
    def total(self) -> int:
        return self.launches.total()


@contextmanager
def _hidden(func: Any) -> Iterator[None]:
    """Let the group that sends nothing copy unseen."""
    with torch._C._DisableTorchDispatch() if func.namespace == "c10d" else nullcontext():
        yield


@contextmanager
def fake_group(workers: int) -> Iterator[None]:
    """Be rank 0 of so many workers, of which the others answer what this one says."""
    if workers == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=workers)
    try:
        yield
    finally:
        dist.destroy_process_group()


def made_batch(step: int, side: int) -> MicroBatch:
    """Noise, as one worker's share."""
    rng = np.random.default_rng(step)
    examples = tuple(Example(step * EXAMPLES + i, i, i) for i in range(EXAMPLES))
    fgr, bgr = (rng.integers(0, 256, (EXAMPLES, side, side, 3), np.uint8) for _ in range(2))
    pha = rng.integers(0, 256, (EXAMPLES, side, side), np.uint8)
    return MicroBatch(step, examples, fgr, pha, bgr, (), True)


def way_of(stage: Stage, side: int) -> ForwardPass:
    return ForwardPass(
        stage=stage, precision="fp32", seed=0, resolution=side, device=torch.device("cpu")
    )


def network_of(stage: Stage, backbone: Any) -> Any:
    return build(stage, ModelConfig(backbone=backbone, refine_sample_pixels=1600), 0)


class Ours:
    """raymat's step."""

    def __init__(self, stage: Stage, backbone: str, side: int, workers: int) -> None:
        self.workers = workers
        self.step = TrainStep(network_of(stage, backbone), way_of(stage, side), World(0, workers))

    def __call__(self, batch: MicroBatch) -> None:
        self.step(batch, EXAMPLES * self.workers, RATES)

    def compose(self, batch: MicroBatch) -> None:
        self.step.forward.compose(batch)


class Reference:
    """The step as the reference writes it, on raymat's pictures."""

    def __init__(self, stage: Stage, backbone: str, side: int) -> None:
        self.forward = way_of(stage, side)
        self.network = network_of(stage, backbone).train()
        parts = [
            {"params": list(getattr(self.network, part).parameters()), "lr": rate}
            for part, rate in RATES.items()
            if hasattr(self.network, part)
        ]
        self.adam = torch.optim.Adam(parts, foreach=True)

    def __call__(self, batch: MicroBatch) -> None:
        composed = self.forward.compose(batch)
        set_dropout_seeds(self.network, torch.arange(len(batch.examples)))
        with _replaced():
            loss, _ = self.forward(self.network, composed)
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()


@contextmanager
def _replaced() -> Iterator[None]:
    """Put the reference's operations in the place of raymat's."""
    own = losses.sobel, refiner.crop, refiner.replace
    losses.sobel, refiner.crop, refiner.replace = _sobel, _unfolded, _assigned
    try:
        yield
    finally:
        losses.sobel, refiner.crop, refiner.replace = own


def _sobel(x: Tensor) -> Tensor:
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=x.dtype) / 8
    n, channels, height, width = x.shape
    padded = F.pad(x.reshape(n * channels, 1, height, width), (1, 1, 1, 1), mode="replicate")
    gx, gy = F.conv2d(padded, torch.stack([across, across.T])[:, None]).unbind(1)
    return (gx * gx + gy * gy + 1e-6).sqrt().reshape(x.shape)


def _unfolded(x: Tensor, patches: refiner.Patches, size: int, margin: int) -> Tensor:
    padded = F.pad(x, (margin,) * 4)
    side = size + 2 * margin
    windows = padded.permute(0, 2, 3, 1).unfold(1, side, size).unfold(2, side, size)
    return windows[patches.example, patches.row, patches.column]


def _assigned(x: Tensor, values: Tensor, patches: refiner.Patches) -> Tensor:
    n, channels, height, width = x.shape
    tiles = x.view(n, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5).clone()
    tiles[patches.example, patches.row, patches.column] = values
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, height, width)


def counted(work: Callable[[MicroBatch], None], batch: MicroBatch) -> Counts:
    with Counts() as counts:
        work(batch)
    return counts


def step_counts(
    stage: Stage, backbone: str, side: int, workers: int, gpu: bool = False
) -> tuple[Counts, Counts]:
    """Return the counts of a whole step, and of its compositing alone. `gpu`: with batch norm as on one."""
    with fake_group(workers), batchnorm_of_cuda() if gpu else nullcontext():
        ours = Ours(stage, backbone, side, workers)
        batch = made_batch(1, side)
        ours(made_batch(0, side))
        return counted(ours, batch), counted(ours.compose, batch)


@contextmanager
def batchnorm_of_cuda() -> Iterator[None]:
    """Have the CPU's batch norm call CUDA's kernels, for which others stand that give the right shapes, and no values."""
    library = torch.library.Library("aten", "IMPL")
    stand_ins: dict[str, Callable[..., Any]] = {
        "batch_norm_stats": lambda x, eps: (x.new_zeros(x.shape[1]), x.new_ones(x.shape[1])),
        "batch_norm_gather_stats_with_counts": lambda like, means, inverses, *rest: (
            means[0].clone(),
            inverses[0].clone(),
        ),
        "batch_norm_elemt": lambda x, *rest: x.clone(),
        "batch_norm_backward_reduce": lambda grad, x, mean, *rest: (
            *(torch.zeros_like(mean) for _ in range(4)),
        ),
        "batch_norm_backward_elemt": lambda grad, x, *rest: torch.empty_like(x).copy_(grad),
    }
    for name, stand_in in stand_ins.items():
        library.impl(name, stand_in, "CPU")
    FUSED_ON.add("cpu")
    try:
        yield
    finally:
        FUSED_ON.discard("cpu")
        library._destroy()


def print_counts(side: int) -> None:
    print(f"{'a step':22} {'workers':19} {'launches':>8} {'ratio':>5}  collectives, waits")
    for stage in ("refine", "base"):
        for backbone in ("resnet50", "mobilenetv2"):
            print_cell(stage, backbone, side)  # type: ignore[arg-type]


def print_cell(stage: Stage, backbone: str, side: int) -> None:
    one = 0
    for workers, gpu in ((1, False), (2, False), (2, True)):
        whole, composing = step_counts(stage, backbone, side, workers, gpu)
        launches = whole.total - composing.total
        one = one or launches
        moved = (whole.operand_bytes - composing.operand_bytes) / EXAMPLES / side**2
        print(
            f"{stage + ' ' + backbone:22} {f'{workers}, as on a GPU' if gpu else workers:<19} {launches:8} {launches / one:5.2f}  "
            f"{dict(whole.collectives)} {dict(+whole.waits)} {moved:,.0f} bytes a pixel"
        )
    reference = Reference(stage, backbone, side)
    reference(made_batch(0, side))
    whole = counted(reference, made_batch(1, side))
    print(
        f"{'  the reference':22} {1:<19} {whole.total - composing.total:8}  {'nonzero'}: {whole.waits['nonzero']}"
    )


def compose(batch: MicroBatch, way: Way, side: int) -> None:
    """Augment and compose as on a GPU, all examples together, or as on the CPU."""
    pixels = (torch.from_numpy(x) for x in (batch.fgr, batch.pha, batch.bgr))
    composite(*pixels, Augmentation(0, batch.numbers, side), way=way)


def print_composing(side: int, batches: int = 16) -> None:
    pixels = batches * EXAMPLES * side**2
    ways: tuple[tuple[str, Way], ...] = (
        ("one by one, as on the CPU", "one by one"),
        ("together, as on a GPU", "together"),
    )
    for name, way in ways:
        found, seconds = [], 0.0
        for number in range(batches):
            batch = made_batch(number, side)
            found.append(counted(lambda b, w=way: compose(b, w, side), batch))  # type: ignore[misc]
            begun = time.process_time()
            compose(batch, way, side)
            seconds += time.process_time() - begun
        print(
            f"compositing {EXAMPLES} examples {name}: {sum(c.total for c in found) / batches:.0f} launches, "
            f"{sum(c.operand_bytes for c in found) / pixels:,.0f} bytes a pixel, "
            f"{seconds / batches * 1e3:.1f} CPU ms (mean of {batches} batches)"
        )


def fused(batch: MicroBatch, side: int, launch: Launch) -> tuple[Any, FusedPlan]:
    """Augment and compose by fused kernels; returns the pictures and the plan."""
    pixels = tuple(torch.from_numpy(x) for x in (batch.fgr, batch.pha, batch.bgr))
    parameters = [draw_photometric(0, number) for number in batch.numbers]
    planned = FusedBatch(parameters, batch.pha.shape[1:], 1.0, launch)  # type: ignore[arg-type]
    return planned.compose(pixels, (0, batch.numbers)), planned.plan  # type: ignore[arg-type]


def kernel_bytes(plan: FusedPlan, count: int, side: int) -> int:
    """Return the bytes that the kernels read and write of the batch's `count` examples."""
    pairs, backgrounds = len(plan.fgr_planes), len(plan.bgr_planes)
    shadows, of_planes = len(plan.shadows), len(plan.shadows.keys() & plan.fgr_planes.keys())
    # What a kernel reads of all pictures: 3 bytes of each, or 12 where it lies in planes.
    colours = 6 * count + 9 * (pairs + backgrounds)
    alphas = count + 3 * pairs
    planes = 20 * pairs + 15 * backgrounds
    passes = (
        16 * (plan.blurs.across.rows + plan.softens.across.rows) + 20 * plan.sharpens.across.rows
    )
    cast = 5 * shadows + 3 * of_planes
    composed = colours + alphas + 4 * shadows + 40 * count
    moved = 24 * len(plan.moved)
    fields = len(plan.noisy) * 4 * 6 * 2 * side + quantiles().nbytes * bool(plan.noisy)
    return side**2 * (planes + passes + colours + cast + composed + moved) + fields


def print_fused(side: int, batches: int = 16) -> None:
    launches = moved = 0

    def record(*operands: Any, **constants: Any) -> None:
        nonlocal launches
        launches += 1

    for number in range(batches):
        batch = made_batch(number, side)
        with Counts() as counts:
            _, plan = fused(batch, side, record)
        launches += counts.total
        moved += counts.operand_bytes + kernel_bytes(plan, EXAMPLES, side)
    print(
        f"compositing {EXAMPLES} examples by fused kernels: {launches / batches:.0f} launches, "
        f"{moved / batches / EXAMPLES / side**2:,.0f} bytes a pixel (mean of {batches} batches); {compared()}"
    )


def compared() -> str:
    """Say how far the fused kernels' pictures are from the other ways', if Triton is there."""
    if importlib.util.find_spec("triton") is None:
        return "values not compared: Triton, which comes with torch's CUDA build, is not installed"
    # In a process of its own: Triton chooses when it is imported whether it interprets, and torch has imported it here.
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, "--compare-fused"]
    off = float(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    return f"pictures within {off:.1g} of the other ways'"


def fused_difference(side: int = 20) -> float:
    """Return how far the interpreted kernels' pictures are from the other ways', as a share of 1."""
    batch = made_batch(0, side)
    found, _ = fused(batch, side, launch_kernel)
    pixels = [torch.from_numpy(x) for x in (batch.fgr, batch.pha, batch.bgr)]
    off = 0.0
    ways: tuple[Way, ...] = ("one by one", "together")
    for way in ways:
        other = composite(*pixels, Augmentation(0, batch.numbers, side), way=way)
        off = max(off, *(float((a - b).abs().max()) for a, b in zip(found, other, strict=True)))
    assert off < 1e-5, off
    return off


def print_times(stage: Stage, backbone: str, side: int, rounds: int) -> None:
    ways: dict[str, Any] = {
        "raymat": Ours(stage, backbone, side, 1),
        "the reference": Reference(stage, backbone, side),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, work in ways.items():
            begun = time.process_time()
            work(made_batch(turn, side))
            seconds[name] += [time.process_time() - begun] if turn else []
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = {name: peak_bytes(work, made_batch(0, side)) for name, work in ways.items()}
    print(
        f"{stage + ' ' + backbone:22} the reference takes {medians['the reference'] / medians['raymat']:.2f} "
        f"times as long, {peaks['the reference'] / peaks['raymat']:.2f} times the memory above the state"
    )


def peak_bytes(work: Callable[[MicroBatch], None], batch: MicroBatch) -> int:
    """Return the most bytes that tensors made in a step take up together."""
    tracker = MemTracker()
    with tracker:
        work(batch)
    peak = tracker.get_tracker_snapshot("peak")
    return int(peak[torch.device("cpu")]["Total"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128, help="side of the pictures in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each way to time")
    parser.add_argument("--counts-only", action="store_true", help="time nothing")
    parser.add_argument("--compare-fused", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.compare_fused:
        print(fused_difference())
        return
    print_counts(options.side)
    print_composing(options.side)
    print_fused(options.side)
    if not options.counts_only:
        for stage in ("refine", "base"):
            for backbone in ("resnet50", "mobilenetv2"):
                print_times(stage, backbone, options.side, options.rounds)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
