"""Augmentation and composition of a batch in a dozen of Triton's kernels: a pixel stays in registers from step to step.

    to_planes, blur      -> planes      the few pictures that are blurred or sharpened, two passes each
    luma_sums, _means    -> means       of each jitter's contrast
    cast_shadows, blur   -> shades      of the alphas that cast a shadow
    compose              -> src, fgr, pha, bgr
    move_captured        -> bgr         the captured backgrounds that are moved

Noise is the same to the bit as in `WholeBatch`; pictures differ by rounding alone. Single precision only. Planning and launching
need no Triton, only the kernels do: who counts launches hands in a `Launch` of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from raymat.data.compositing.composed import Composed, empty_batch
from raymat.data.compositing.fused_plan import FusedPlan, Passes
from raymat.data.compositing.host_numbers import HostNumbers, sent_to
from raymat.data.compositing.noise_field import noise_words, quantiles_on
from raymat.data.compositing.photometric_draws import Photometric
from raymat.errors import first_line

BLOCK = 512
"""Pixels of a program, a power of 2."""

Launch: TypeAlias = Callable[..., None]
"""Launches a kernel: its name, the grid, its operands; by name what it is compiled for."""


def launch_kernel(name: str, grid: tuple[int, int], *operands: Any, **constants: Any) -> None:
    """Launch a kernel of `fused_kernels` on the current stream of its first operand's device. Raises ImportError without Triton."""
    from raymat.data.compositing import fused_kernels

    # Triton launches on the thread's device, which may be another.
    with torch.cuda.device_of(operands[0]):
        getattr(fused_kernels, name)[grid](*operands, **constants)


LEAST_CAPABILITY = (7, 5)
"""Compute capability of the oldest cards that Triton's ptxas makes code for."""


@lru_cache(maxsize=8)
def fused_obstacle(device: torch.device) -> str | None:
    """Return why no fused kernel can be launched on `device`, in words; None: they can.

    One is launched, since Triton needs a C compiler, headers and a driver of its liking: the first time that takes seconds.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        return "no GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} is below 7.5"
    try:
        from raymat.data.compositing import fused_kernels
    except ImportError as error:
        return f"Triton cannot be imported: {first_line(error)}"
    sums, means = torch.ones((1, 1), device=device), torch.empty(1, device=device)
    try:
        launch_kernel("luma_means", (1, 1), sums, means, 1, 16, BLOCK=BLOCK)
    except (fused_kernels.TritonError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"Triton cannot launch a kernel: {first_line(error)}"
    return None


class FusedBatch:
    """Plan of a batch's augmentation, made on the host, and what carries it out on the device."""

    def __init__(
        self,
        parameters: Sequence[Photometric],
        size: tuple[int, int],
        scale: float,
        launch: Launch = launch_kernel,
    ) -> None:
        """Plan for pictures of `size` (height, width); `scale`: pixels per pixel of the frame that lengths were drawn for."""
        self._size, self._pixels, self._launch = size, size[0] * size[1], launch
        self._blocks = -(-self._pixels // BLOCK)
        self._numbers = HostNumbers()
        self.plan = FusedPlan(parameters, size, scale, self._numbers)

    def compose(
        self,
        pixels: tuple[Tensor, Tensor, Tensor],
        key: tuple[int, Sequence[int]],
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Composed:
        """Return the composed batch of the uint8 `pixels` fgr (n, h, w, 3), pha (n, h, w) and bgr (n, h, w, 3); n is at least 1.

        `key`: the run's seed and the examples' numbers, from which the noise is drawn. `memory_format`: of src and bgr.
        """
        fgr, pha, bgr = (x.contiguous() for x in pixels)
        plan, last = self.plan, memory_format == torch.channels_last
        batch = empty_batch(pha, torch.float32, memory_format)
        self._numbers.send(batch.pha)
        planes = self._details(fgr, pha, bgr, batch.pha)
        means = self._means(fgr, bgr, planes)
        shades, moved = self._shades(pha, planes), self._empty(planes, 3 * len(plan.moved))
        words = self._words(key, pha.device)
        self._launch(
            "compose", (self._blocks, len(pha)),
            fgr, pha, bgr, planes, shades, plan.table.on_device(), means, words,
            quantiles_on(pha.device), *batch, moved, *self._size, self._pixels,
            LAST=last, BLOCK=BLOCK,
        )  # fmt: skip
        if plan.moved:
            self._launch(
                "move_captured", (self._blocks, len(plan.moved)), moved, batch.bgr,
                plan.moves.on_device(), *self._size, self._pixels, LAST=last, BLOCK=BLOCK,
            )  # fmt: skip
        return batch

    def _details(self, fgr: Tensor, pha: Tensor, bgr: Tensor, like: Tensor) -> Tensor:
        """Return the planes of blurred and sharpened pictures, (p, h, w)."""
        planes, detailed = self._empty(like, self.plan.planes), self.plan.detailed
        if detailed.rows:
            self._launch(
                "to_planes", (self._blocks, detailed.rows), fgr, pha, bgr, planes,
                detailed.on_device(), self._pixels, BLOCK=BLOCK,
            )  # fmt: skip
        self._blur(planes, self.plan.blurs)
        self._blur(planes, self.plan.sharpens, sharpen=True)
        return planes

    def _means(self, fgr: Tensor, bgr: Tensor, planes: Tensor) -> Tensor:
        """Return the mean luma of each foreground and then each background where its contrast comes, (2 n)."""
        count = 2 * len(fgr)
        sums, means = planes.new_empty((count, self._blocks)), planes.new_empty(count)
        self._launch(
            "luma_sums", (self._blocks, count), fgr, bgr, planes, self.plan.table.on_device(), sums,
            self._pixels, BLOCK=BLOCK,
        )  # fmt: skip
        self._launch("luma_means", (count, 1), sums, means, self._blocks, self._pixels, BLOCK=BLOCK)
        return means

    def _shades(self, pha: Tensor, planes: Tensor) -> Tensor:
        """Return what to subtract from backgrounds for the shadows that alphas cast, (s, h, w)."""
        casts = self.plan.casts
        shades = self._empty(planes, casts.rows)
        if casts.rows:
            self._launch(
                "cast_shadows", (self._blocks, casts.rows), pha, planes, shades, casts.on_device(),
                *self._size, self._pixels, BLOCK=BLOCK,
            )  # fmt: skip
        self._blur(shades, self.plan.softens)
        return shades

    def _blur(self, planes: Tensor, passes: Passes, sharpen: bool = False) -> None:
        """Blur those of `planes` that have a row, or sharpen them."""
        count = passes.across.rows
        if not count:
            return
        between = self._empty(planes, count)
        for source, target, table, is_down in (
            (planes, between, passes.across, False), (between, planes, passes.down, True),
        ):  # fmt: skip
            self._launch(
                "blur", (self._blocks, count), source, target, table.on_device(),
                *self._size, self._pixels,
                DOWN=is_down, SHARPEN=is_down and sharpen, BLOCK=BLOCK,
            )  # fmt: skip

    def _words(self, key: tuple[int, Sequence[int]], device: torch.device) -> Tensor:
        """Return the words of the noisy examples' fields; see noise_field."""
        seed, numbers = key
        if not self.plan.noisy:
            return torch.empty(1, dtype=torch.int32, device=device)
        words = np.stack([noise_words(seed, numbers[i], *self._size) for i in self.plan.noisy])
        return sent_to(device, torch.from_numpy(words))

    def _empty(self, like: Tensor, count: int) -> Tensor:
        """Return so many float planes (count, h, w); a number if there is none, since a kernel takes an address."""
        return like.new_empty((count, *self._size)) if count else like.new_empty(1)
