"""Augmentation of one example at a time: on the CPU, where an example's planes stay in the cache, and runs of recipes 1 and 2 on
any device, whose bits depend on this order of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from raymat.config.sections import Recipe
from raymat.data.compositing.composed import Composed, empty_batch
from raymat.data.compositing.noise_field import noise_words, normal_field
from raymat.data.compositing.photometric_draws import Jitter, Noise, Photometric, Shadow
from raymat.data.photometric import affine_warp, box_blur, jitter_, noise_, plain_jitter_, sharpen


def one_by_one(
    pixels: tuple[Tensor, Tensor, Tensor],
    parameters: Sequence[Photometric],
    scale: float,
    recipe: Recipe,
    key: tuple[int, Sequence[int]],
    dtype: torch.dtype,
) -> Composed:
    """Return the composed batch of the uint8 `pixels` fgr (n, h, w, 3), pha (n, h, w) and bgr (n, h, w, 3).

    `key`: the run's seed and the examples' numbers, from which the noise is drawn.
    """
    seed, numbers = key
    fgr, pha, bgr = pixels
    batch = empty_batch(pha, dtype)
    for i in range(len(pha)):
        example = Composed(*(whole[i] for whole in batch))
        _fill_(example.fgr, fgr[i].permute(2, 0, 1))
        _fill_(example.pha, pha[i])
        _fill_(example.bgr, bgr[i].permute(2, 0, 1))
        drawn = None if recipe in ("1", "2") else (seed, numbers[i])
        apply_(example, parameters[i], scale, recipe, drawn)
    return batch


def _fill_(planes: Tensor, image: Tensor) -> None:
    """Write 0..255 of `image` into `planes` as 0..1."""
    planes.copy_(image).div_(255)


def apply_(
    example: Composed,
    parameters: Photometric,
    scale: float,
    recipe: Recipe = "2",
    key: tuple[int, int] | None = None,
) -> None:
    """Apply `parameters` to one example, (c, h, w) each: `fgr`, `pha` and `bgr` are changed, `src` is made.

    `scale` is the example's pixels per pixel of the frame that the parameters were drawn for. `key`: the run's seed and the
    example's number, from which the noise is drawn; None: it comes from torch's generator of the device.
    """
    p = parameters
    for x in (example.fgr, example.pha):
        _detail_(x, p.pair_blur, p.pair_sharpen, scale)
    jitter_(example.fgr, p.fgr_jitter)
    _detail_(example.bgr, p.bgr_blur, p.bgr_sharpen, scale)
    jitter_(example.bgr, p.bgr_jitter)
    shadow = None if p.shadow is None else _soft_shadow(example.pha, p.shadow, scale)
    _compose_(example, shadow)
    if p.noise is not None:
        _add_noise_(example, p.noise, key)
    if p.captured_jitter is not None:
        _CAPTURED_JITTER[recipe](example.bgr, p.captured_jitter)
    if p.captured_affine is not None:
        example.bgr.copy_(affine_warp(example.bgr, p.captured_affine))


_CAPTURED_JITTER: dict[Recipe, Callable[[Tensor, Jitter], Tensor]] = {
    "1": jitter_,
    "2": plain_jitter_,
    "3": plain_jitter_,
    "4": plain_jitter_,
}


def _add_noise_(example: Composed, noise: Noise, key: tuple[int, int] | None) -> None:
    if key is None:
        generator = torch.Generator(device=example.src.device).manual_seed(noise.seed)
        noise_(example.src, noise.src, generator)
        noise_(example.bgr, noise.bgr, generator)
        return
    height, width = example.src.shape[-2:]
    words = torch.from_numpy(noise_words(*key, height, width))[None].to(example.src.device)
    (field,) = normal_field(words, height, width).to(example.src.dtype)
    for x, level, part in zip(
        (example.src, example.bgr), (noise.src, noise.bgr), field, strict=True
    ):
        x.add_(part.mul_(level)).clamp_(0, 1)


def _detail_(x: Tensor, blur: int | None, sharper: bool, scale: float) -> None:
    """Blur, then sharpen, as drawn."""
    if blur is not None:
        x.copy_(box_blur(x, blur * scale))
    if sharper:
        x.copy_(sharpen(x, scale))


def _soft_shadow(pha: Tensor, shadow: Shadow, scale: float) -> Tensor:
    """Return what to subtract from the background, (1, h, w), for the shadow that `pha` casts."""
    moved = affine_warp(pha, shadow.affine).mul_(shadow.strength)
    return box_blur(moved, (shadow.kernel * scale - 1) / 2)


def _compose_(example: Composed, shadow: Tensor | None) -> None:
    """Compute src = fgr * pha + b * (1 - pha), where b is the background minus the shadow, clamped to 0..1."""
    src, pha = example.src, example.pha
    behind = example.bgr if shadow is None else torch.sub(example.bgr, shadow, out=src).clamp_(0, 1)
    torch.mul(behind, 1 - pha, out=src).addcmul_(example.fgr, pha)
