"""Photometric augmentation and composition on the training device: from a micro-batch's pixels to the networks' inputs.

Each example's parameters are drawn on the host, from the example's key alone, and then applied, one example at a
time. So an example comes out equal to the bit alone, in any batch and on any worker.
The steps and their figures are those of BackgroundMattingV2's training (Lin et al., CVPR 2021), in its order:

    foreground and alpha    box blur, sharpen (both together), colour jitter (foreground only)
    background              box blur, sharpen, colour jitter
    source                  foreground over the background, on which a soft shadow of the alpha may have been cast
    source and background   noise, to each its own
    background              colour jitter and a small affine warp: the captured background is never quite the one behind

The source sees the background before the last two; the shadow is in the source only. The captured background is jittered by
another arithmetic than the rest, as in that training; runs of recipe 1 jitter all alike. docs/differences.md lists what else
is not as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raymat.config.sections import RECIPES, Recipe
from raymat.data.photometric import (
    Affine,
    Jitter,
    JitterStep,
    affine_warp,
    box_blur,
    jitter_,
    noise_,
    plain_jitter_,
    sharpen,
)
from raymat.data.rng import Draws, Stream


class Composed(NamedTuple):
    """Batch for the networks: `src`, `bgr`, `fgr` (n, 3, h, w) RGB and `pha` (n, 1, h, w), contiguous floats in 0..1."""

    src: Tensor
    bgr: Tensor
    fgr: Tensor
    pha: Tensor


@dataclass(frozen=True)
class Shadow:
    """Soft shadow: the alpha times `strength` (0..0.3), moved, blurred with a box of `kernel` pixels, subtracted."""

    strength: float
    affine: Affine
    kernel: int


@dataclass(frozen=True)
class Noise:
    """Standard deviations (0..0.03) of the noise of source and background, and the seed of its field."""

    src: float
    bgr: float
    seed: int


@dataclass(frozen=True)
class Photometric:
    """Parameters of one training example's augmentation; None and False: not applied. Lengths are in pixels of the
    `resolution` frame."""

    pair_blur: int | None
    """Radius of the box blur of foreground and alpha."""
    pair_sharpen: bool
    fgr_jitter: Jitter
    bgr_blur: int | None
    """Radius of the box blur of the background."""
    bgr_sharpen: bool
    bgr_jitter: Jitter
    shadow: Shadow | None
    noise: Noise | None
    captured_jitter: Jitter | None
    """Jitter of the background given to the network, after the source was composed."""
    captured_affine: Affine | None
    """Warp of the background given to the network, after the source was composed."""


_WORDS = 37
_STEPS: tuple[JitterStep, ...] = ("brightness", "contrast", "saturation", "hue")


def draw_photometric(seed: int, number: int) -> Photometric:
    """Draw the parameters of training example `number` of a run with `seed`.

    Always reads the same `_WORDS` words, each for one purpose: changing a probability moves no other draw. New draws are appended.
    """
    u = iter(Draws(seed, Stream.PHOTOMETRIC, number).uniforms(_WORDS).tolist())
    parameters = Photometric(
        pair_blur=_draw_blur(u),
        pair_sharpen=_chance(u, 0.1),
        fgr_jitter=_draw_jitter(u, 0.15, 0.05),
        bgr_blur=_draw_blur(u),
        bgr_sharpen=_chance(u, 0.1),
        bgr_jitter=_draw_jitter(u, 0.15, 0.05),
        shadow=_draw_shadow(u),
        noise=_draw_noise(u, seed, number),
        captured_jitter=_draw_captured_jitter(u),
        captured_affine=_draw_captured_affine(u),
    )
    assert next(u, None) is None, "not all words were read"
    return parameters


def _chance(u: Iterator[float], probability: float) -> bool:
    return next(u) < probability


def _between(u: Iterator[float], low: float, high: float) -> float:
    return low + (high - low) * next(u)


def _whole(u: Iterator[float], low: int, high: int) -> int:
    """Draw a whole number in low..high, both included."""
    return min(low + int(next(u) * (high - low + 1)), high)


def _draw_blur(u: Iterator[float]) -> int | None:
    chosen, radius = _chance(u, 0.1), _whole(u, 0, 5)
    return radius if chosen else None


def _draw_jitter(u: Iterator[float], spread: float, hue: float) -> Jitter:
    """Draw factors in 1 +- `spread`, a hue shift in +- `hue`, any of the 24 orders. Reads 5 words."""
    return Jitter(
        order=_order(_whole(u, 0, 23)),
        brightness=_between(u, 1 - spread, 1 + spread),
        contrast=_between(u, 1 - spread, 1 + spread),
        saturation=_between(u, 1 - spread, 1 + spread),
        hue=_between(u, -hue, hue),
    )


def _order(index: int) -> tuple[JitterStep, ...]:
    """Return the index-th (0..23) permutation of the four adjustments, in lexicographic order."""
    left = list(_STEPS)
    digits = (index // 6, index % 6 // 2, index % 2, 0)
    return tuple(left.pop(digit) for digit in digits)


def _draw_shadow(u: Iterator[float]) -> Shadow | None:
    chosen = _chance(u, 0.3)
    shadow = Shadow(
        strength=_between(u, 0, 0.3),
        affine=Affine(
            degrees=_between(u, -5, 5),
            translate=(_between(u, -0.2, 0.2), _between(u, -0.2, 0.2)),
            scale=_between(u, 0.5, 1.5),
            shear=_between(u, -5, 5),
        ),
        kernel=_whole(u, 20, 39),
    )
    return shadow if chosen else None


def _draw_noise(u: Iterator[float], seed: int, number: int) -> Noise | None:
    chosen, src, bgr = _chance(u, 0.4), _between(u, 0, 0.03), _between(u, 0, 0.03)
    if not chosen:
        return None
    return Noise(src=src, bgr=bgr, seed=Draws(seed, Stream.NOISE, number).torch_seed())


def _draw_captured_jitter(u: Iterator[float]) -> Jitter | None:
    chosen, drawn = _chance(u, 0.8), _draw_jitter(u, 0.18, 0.1)
    return drawn if chosen else None


def _draw_captured_affine(u: Iterator[float]) -> Affine | None:
    chosen = _chance(u, 0.3)
    affine = Affine(
        degrees=_between(u, -1, 1),
        translate=(_between(u, -0.01, 0.01), _between(u, -0.01, 0.01)),
    )
    return affine if chosen else None


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
) -> Composed:
    """Compose a micro-batch on the device that its pixels are on. They are not changed; n may be 0.

    `fgr` and `bgr` are uint8 (n, h, w, 3) RGB, `pha` is uint8 (n, h, w). Without `augmentation` nothing is random:
    src = fgr * pha + bgr * (1 - pha). Translations are fractions of the crop's own sides.

    Raises:
        ValueError: the shapes do not go together, or the numbers are not n.
    """
    _check(fgr, pha, bgr, augmentation)
    n, height, width = pha.shape
    batch = Composed(
        *(pha.new_empty((n, c, height, width), dtype=dtype) for c in (3, 3, 3, 1)),
    )
    for i in range(n):
        example = Composed(*(whole[i] for whole in batch))
        _fill_(example.fgr, fgr[i].permute(2, 0, 1))
        _fill_(example.pha, pha[i])
        _fill_(example.bgr, bgr[i].permute(2, 0, 1))
        if augmentation is None:
            _compose_(example, shadow=None)
        else:
            parameters = draw_photometric(augmentation.seed, augmentation.numbers[i])
            scale = max(height, width) / augmentation.resolution
            apply_(example, parameters, scale, augmentation.recipe)
    return batch


def _check(fgr: Tensor, pha: Tensor, bgr: Tensor, augmentation: Augmentation | None) -> None:
    expected, count = (*pha.shape, 3), len(augmentation.numbers if augmentation else pha)
    if pha.ndim != 3 or fgr.shape != expected or bgr.shape != expected or count != len(pha):
        raise ValueError(
            "expected fgr and bgr (n, h, w, 3), pha (n, h, w) and n numbers, got "
            f"{tuple(fgr.shape)}, {tuple(bgr.shape)}, {tuple(pha.shape)} and {count} numbers"
        )


def _fill_(planes: Tensor, image: Tensor) -> None:
    """Write 0..255 of `image` into `planes` as 0..1."""
    planes.copy_(image).div_(255)


def apply_(
    example: Composed, parameters: Photometric, scale: float, recipe: Recipe = RECIPES[-1]
) -> None:
    """Apply `parameters` to one example, (c, h, w) each: `fgr`, `pha` and `bgr` are changed, `src` is made.

    `scale` is the example's pixels per pixel of the frame that the parameters were drawn for.
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
        generator = torch.Generator(device=example.src.device).manual_seed(p.noise.seed)
        noise_(example.src, p.noise.src, generator)
        noise_(example.bgr, p.noise.bgr, generator)
    if p.captured_jitter is not None:
        _CAPTURED_JITTER[recipe](example.bgr, p.captured_jitter)
    if p.captured_affine is not None:
        example.bgr.copy_(affine_warp(example.bgr, p.captured_affine))


_CAPTURED_JITTER: dict[Recipe, Callable[[Tensor, Jitter], Tensor]] = {
    "1": jitter_,
    "2": plain_jitter_,
}


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
