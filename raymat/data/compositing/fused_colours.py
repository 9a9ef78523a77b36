"""What the fused augmentation does to a pixel by itself, as functions that Triton's kernels call.

A pixel is three tensors of a block's pixels, r, g and b, in 0..1. The formulas are those of `raymat.data.photometric`. Importing
it needs Triton, which comes with torch's CUDA build.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Places in a jitter: the order of the four steps first.
BRIGHTNESS, CONTRAST, SATURATION, SHIFTS = (tl.constexpr(i) for i in (4, 5, 6, 7))

TINY = tl.constexpr(1.1754943508222875e-38)
"""The smallest normal float32."""


@triton.jit
def clamped(x):
    """Return `x` clamped to 0..1."""
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def luma(r, g, b):
    """Return 0.2989 R + 0.587 G + 0.114 B."""
    return r * 0.2989 + g * 0.587 + b * 0.114


@triton.jit
def _ramp(hue, shift):
    return clamped(tl.abs(tl.abs(hue + shift) - 3.0) - 1.0)


@triton.jit
def _hue_shifted(r, g, b, jitter):
    largest, smallest = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
    chroma = largest - smallest
    hue = tl.div_rn(g + b - r - largest, tl.maximum(chroma, TINY)) + 2.0
    hue = tl.where(g - b < 0, -tl.abs(hue), tl.abs(hue))
    r = smallest + chroma * _ramp(hue, tl.load(jitter + SHIFTS))
    g = smallest + chroma * _ramp(hue, tl.load(jitter + SHIFTS + 1))
    b = smallest + chroma * _ramp(hue, tl.load(jitter + SHIFTS + 2))
    return r, g, b


@triton.jit
def _scaled(r, g, b, factor, more):
    return clamped(r * factor + more), clamped(g * factor + more), clamped(b * factor + more)


@triton.jit
def blended(r, g, b, jitter, place, mean):
    """Take the step at `place` of a jitter as torchvision does."""
    step = tl.load(jitter + place)
    if step == 0:
        r, g, b = _scaled(r, g, b, tl.load(jitter + BRIGHTNESS), 0.0)
    elif step == 1:
        factor = tl.load(jitter + CONTRAST)
        r, g, b = _scaled(r, g, b, factor, mean * (1 - factor))
    elif step == 2:
        factor = tl.load(jitter + SATURATION)
        r, g, b = _scaled(r, g, b, factor, luma(r, g, b) * (1 - factor))
    else:
        r, g, b = _hue_shifted(r, g, b, jitter)
    return r, g, b


@triton.jit
def plain(r, g, b, jitter, place):
    """Take the step at `place` of a jitter as kornia 0.4.1 does."""
    step = tl.load(jitter + place)
    if step == 0:
        r, g, b = _scaled(r, g, b, 1.0, tl.load(jitter + BRIGHTNESS) - 1)
    elif step == 1:
        r, g, b = _scaled(r, g, b, tl.load(jitter + CONTRAST), 0.0)
    elif step == 2:
        value = tl.maximum(tl.maximum(r, g), b)
        chroma = tl.maximum(value - tl.minimum(tl.minimum(r, g), b), TINY)
        stretch = tl.minimum(tl.div_rn(value, chroma), tl.load(jitter + SATURATION))
        r, g, b = _scaled(r - value, g - value, b - value, stretch, value)
    else:
        r, g, b = _hue_shifted(r, g, b, jitter)
    return r, g, b


@triton.jit
def unit(start, inside):
    """Load 0..255 as 0..1."""
    return tl.div_rn(tl.load(start, inside, 0).to(tl.float32), 255.0)


@triton.jit
def colours(read, planes, picture, plane, pixels, at, inside):
    """Load a picture's pixels as 0..1: from `planes` if it has one there, else as they were read, (n, h, w, 3)."""
    if plane >= 0:
        # A name of its own: what both branches assign must be of one type.
        first = planes + plane.to(tl.int64) * pixels + at
        r = tl.load(first, inside, 0.0)
        g = tl.load(first + pixels, inside, 0.0)
        b = tl.load(first + 2 * pixels, inside, 0.0)
    else:
        start = read + (picture.to(tl.int64) * pixels + at) * 3
        r, g, b = unit(start, inside), unit(start + 1, inside), unit(start + 2, inside)
    return r, g, b


@triton.jit
def over(fr, fg, fb, alpha, br, bg, bb):
    """Return the foreground over what is behind it, which is clamped before."""
    rest = 1 - alpha
    r = clamped(br) * rest + fr * alpha
    g = clamped(bg) * rest + fg * alpha
    b = clamped(bb) * rest + fb * alpha
    return r, g, b


@triton.jit
def noisy(r, g, b, words, quantiles, first, deviation, height, width, row, column, inside):
    """Add the noise of three channels, the first of which has the number `first`; see noise_field.normal_field."""
    rows, columns = words + first * height + row, words + 6 * height + first * width + column
    for_r = tl.load(rows, inside, 1) * tl.load(columns, inside, 1)
    for_g = tl.load(rows + height, inside, 1) * tl.load(columns + width, inside, 1)
    for_b = tl.load(rows + 2 * height, inside, 1) * tl.load(columns + 2 * width, inside, 1)
    r = clamped(r + tl.load(quantiles + ((for_r >> 16) & 0xFFFF)) * deviation)
    g = clamped(g + tl.load(quantiles + ((for_g >> 16) & 0xFFFF)) * deviation)
    b = clamped(b + tl.load(quantiles + ((for_b >> 16) & 0xFFFF)) * deviation)
    return r, g, b
