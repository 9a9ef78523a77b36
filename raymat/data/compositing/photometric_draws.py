"""Parameters of an example's photometric augmentation, drawn on the host from the example's key alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from raymat.data.rng import Draws, Stream

JitterStep = Literal["brightness", "contrast", "saturation", "hue"]


@dataclass(frozen=True)
class Jitter:
    """Colour jitter: three factors around 1, a shift of the hue in turns (-0.5..0.5), and the order of the four."""

    order: tuple[JitterStep, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True)
class Affine:
    """Affine map of the picture about its centre: x shear, then rotation, then scale, then translation.

    `degrees` turns clockwise on the screen, `shear` slants along x (both in degrees), `translate` is (x, y) in fractions of
    the picture's width and height.
    """

    degrees: float
    translate: tuple[float, float]
    scale: float = 1.0
    shear: float = 0.0


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
