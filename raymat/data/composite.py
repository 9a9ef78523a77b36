"""Photometric augmentation and composition on the training device: from a micro-batch's pixels to the networks' inputs.

Each example's parameters are drawn on the host, from the example's key alone, and then applied, on the CPU one example at a
time, on a GPU to all at once, from recipe 4 on by fused kernels. No operation mixes examples: each comes out equal to the bit
alone, in any batch and on any worker.
The steps and their figures are those of BackgroundMattingV2's training (Lin et al., CVPR 2021), in its order:

    foreground and alpha    box blur, sharpen (both together), colour jitter (foreground only)
    background              box blur, sharpen, colour jitter
    source                  foreground over the background, on which a soft shadow of the alpha may have been cast
    source and background   noise, to each its own
    background              colour jitter and a small affine warp: the captured background is never quite the one behind

The source sees the background before the last two; the shadow is in the source only. The captured background is jittered by
another arithmetic than the rest, as in that training; runs of recipe 1 jitter all alike. Up to recipe 2 noise comes from torch's
generator of the device. docs/differences.md lists what else is not as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from raymat.config.sections import RECIPES, Recipe
from raymat.data.compositing.composed import Composed, empty_batch, to_unit_
from raymat.data.compositing.fused_batch import FusedBatch, fused_obstacle
from raymat.data.compositing.per_example import one_by_one
from raymat.data.compositing.photometric_draws import draw_photometric
from raymat.data.compositing.whole_batch import WholeBatch

__all__ = ["Augmentation", "Composed", "Way", "composite", "usual_way"]

Way: TypeAlias = Literal["one by one", "together", "fused"]
"""How examples are augmented: each by itself, each of torch's operations on all of them, or all of them by fused kernels."""


@dataclass(frozen=True)
class Augmentation:
    """Key of a training batch's augmentation: what each example's parameters are drawn from."""

    seed: int
    """The run's."""
    numbers: Sequence[int]
    """The example's number in the run, for each of the n examples."""
    resolution: int
    """Side in pixels of the square that radii and kernels are drawn for; they are scaled by max(h, w) / `resolution`."""
    recipe: Recipe = RECIPES[-1]
    """The run's: how what was drawn is applied. What is drawn is the same for all."""


@torch.no_grad()
def composite(
    fgr: Tensor,
    pha: Tensor,
    bgr: Tensor,
    augmentation: Augmentation | None,
    dtype: torch.dtype = torch.float32,
    way: Way | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Composed:
    """Compose a micro-batch on the device that its pixels are on. They are not changed; n may be 0.

    `fgr` and `bgr` are uint8 (n, h, w, 3) RGB, `pha` is uint8 (n, h, w). Without `augmentation` nothing is random:
    src = fgr * pha + bgr * (1 - pha). Translations are fractions of the crop's own sides.

    `way`: of recipes 3 and 4; default: `usual_way`. The others give the same pictures but for rounding, and the same noise to the
    bit. `memory_format`: of `src` and `bgr`.

    Raises:
        ValueError: the shapes do not go together, or the numbers are not n.
    """
    _check(fgr, pha, bgr, augmentation)
    n, height, width = pha.shape
    if augmentation is None or not n:
        return _in_format(_plain(fgr, pha, bgr, dtype), memory_format)
    parameters = [draw_photometric(augmentation.seed, number) for number in augmentation.numbers]
    scale = max(height, width) / augmentation.resolution
    key = (augmentation.seed, augmentation.numbers)
    pixels, recipe = (fgr, pha, bgr), augmentation.recipe
    way = way or usual_way(fgr.device, recipe, dtype)
    if way == "fused":
        return FusedBatch(parameters, (height, width), scale).compose(pixels, key, memory_format)
    if way == "one by one" or recipe in ("1", "2"):
        composed = one_by_one(pixels, parameters, scale, recipe, key, dtype)
    else:
        composed = WholeBatch(parameters, (height, width), scale).compose(pixels, key, dtype)
    return _in_format(composed, memory_format)


def usual_way(device: torch.device, recipe: Recipe, dtype: torch.dtype) -> Way:
    """Return how a run's batches are composed on `device` as `dtype`."""
    if device.type == "cpu" or recipe in ("1", "2"):
        return "one by one"
    if recipe == "3" or dtype != torch.float32 or fused_obstacle(device) is not None:
        return "together"
    return "fused"


def _in_format(batch: Composed, memory_format: torch.memory_format) -> Composed:
    src, bgr = (x.contiguous(memory_format=memory_format) for x in (batch.src, batch.bgr))
    return batch._replace(src=src, bgr=bgr)


def _plain(fgr: Tensor, pha: Tensor, bgr: Tensor, dtype: torch.dtype) -> Composed:
    """Compose without any augmentation."""
    batch = empty_batch(pha, dtype)
    to_unit_(batch.fgr, fgr.permute(0, 3, 1, 2))
    to_unit_(batch.pha, pha.unsqueeze(1))
    to_unit_(batch.bgr, bgr.permute(0, 3, 1, 2))
    torch.mul(batch.bgr, 1 - batch.pha, out=batch.src).addcmul_(batch.fgr, batch.pha)
    return batch


def _check(fgr: Tensor, pha: Tensor, bgr: Tensor, augmentation: Augmentation | None) -> None:
    expected, count = (*pha.shape, 3), len(augmentation.numbers if augmentation else pha)
    if pha.ndim != 3 or fgr.shape != expected or bgr.shape != expected or count != len(pha):
        raise ValueError(
            "expected fgr and bgr (n, h, w, 3), pha (n, h, w) and n numbers, got "
            f"{tuple(fgr.shape)}, {tuple(bgr.shape)}, {tuple(pha.shape)} and {count} numbers"
        )
