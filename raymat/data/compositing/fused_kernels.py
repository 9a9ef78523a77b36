"""Triton's kernels of the fused augmentation: blur, warp, a picture's mean luma, and all that is done to a pixel by itself.

A program works on a block of one picture's pixels. Pictures that were blurred or sharpened come as float planes, all others as
they were read. What differs from picture to picture lies in tables of floats, a row each; `fused_plan` makes them. The formulas
are those of `raymat.data.photometric`.

An example's bits depend on its size alone, not on the batch: no program reads what another one of its launch writes, each sum
has one order, and tables, which begin anywhere in memory, are not compiled for by their alignment. What is compiled may contract
a product and a sum into one operation, as the interpreter and the CPU do not: pictures differ from the CPU's in the last bits.

Importing it needs Triton, which comes with torch's CUDA build.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.errors import TritonError

from raymat.data.compositing.fused_colours import (
    blended,
    clamped,
    colours,
    luma,
    noisy,
    over,
    plain,
    unit,
)

__all__ = [
    "TritonError",
    "blur",
    "cast_shadows",
    "compose",
    "luma_means",
    "luma_sums",
    "move_captured",
    "to_planes",
]

# Places in an example's row, as `fused_plan` fills it: three jitters first, then single numbers.
ROW = tl.constexpr(38)
BGR_JITTER, CAPTURED_JITTER = tl.constexpr(10), tl.constexpr(20)
IS_CAPTURED, NOISE, SRC_DEVIATION, BGR_DEVIATION = (tl.constexpr(i) for i in (30, 31, 32, 33))
FGR_PLANE, BGR_PLANE, SHADE, MOVED = (tl.constexpr(i) for i in (34, 35, 36, 37))


@triton.jit
def _store(out, picture, pixels, at, inside, r, g, b, LAST: tl.constexpr):
    """Write a picture's pixels, (n, 3, h, w), with the channels last in memory if `LAST`."""
    start = out + picture.to(tl.int64) * 3 * pixels
    if LAST:
        start, step = start + at * 3, 1
    else:
        start, step = start + at, pixels
    tl.store(start, r, inside)
    tl.store(start + step, g, inside)
    tl.store(start + 2 * step, b, inside)


@triton.jit(do_not_specialize_on_alignment=["work"])
def to_planes(fgr, pha, bgr, planes, work, pixels, BLOCK: tl.constexpr):
    """Write pictures that are to be blurred or sharpened into planes, as 0..1. Grid: (blocks, pictures).

    `work` has a row for each: its example, its first plane, and whether it is a foreground with its alpha, else a background.
    """
    row = work + tl.program_id(1) * 3
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    example = tl.load(row).to(tl.int64) * pixels
    out = planes + tl.load(row + 1).to(tl.int64) * pixels + at
    is_pair = tl.load(row + 2) > 0
    for channel in range(3):
        place = (example + at) * 3 + channel
        if is_pair:
            value = unit(fgr + place, inside)
        else:
            value = unit(bgr + place, inside)
        tl.store(out + channel * pixels, value, inside)
    if is_pair:
        tl.store(out + 3 * pixels, unit(pha + example + at, inside), inside)


@triton.jit(do_not_specialize_on_alignment=["table"])
def luma_sums(fgr, bgr, planes, table, sums, pixels, BLOCK: tl.constexpr):
    """Write the sum of a block's luma where the contrast comes in the picture's jitter; first all foregrounds, then all
    backgrounds. `sums` is (2 n, blocks). Grid: (blocks, 2 n)."""
    block, picture = tl.program_id(0), tl.program_id(1)
    count = tl.num_programs(1) // 2
    example = picture % count
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    row = table + example * ROW
    if picture < count:
        plane = tl.load(row + FGR_PLANE).to(tl.int32)
        r, g, b = colours(fgr, planes, example, plane, pixels, at, inside)
        jitter = row
    else:
        plane = tl.load(row + BGR_PLANE).to(tl.int32)
        r, g, b = colours(bgr, planes, example, plane, pixels, at, inside)
        jitter = row + BGR_JITTER
    place = 0
    while tl.load(jitter + place) != 1:
        r, g, b = blended(r, g, b, jitter, place, 0.0)
        place += 1
    light = tl.where(inside, luma(r, g, b), 0.0)
    tl.store(sums + picture * tl.num_programs(0) + block, tl.sum(light, 0))


@triton.jit(do_not_specialize=["blocks"])
def luma_means(sums, means, blocks, pixels, BLOCK: tl.constexpr):
    """Write each picture's mean luma (2 n) of the sums of its blocks (2 n, blocks). Grid: (2 n, 1)."""
    picture = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, blocks, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(sums + picture * blocks + at, at < blocks, 0.0).to(tl.float64)
    tl.store(means + picture, (tl.sum(total, 0) / pixels.to(tl.float64)).to(tl.float32))


@triton.jit
def _alpha(pha, planes, example, plane, pixels, at, inside):
    """Load an alpha as 0..1: the fourth plane of a foreground that has planes."""
    if plane >= 0:
        alpha = tl.load(planes + (plane + 3).to(tl.int64) * pixels + at, inside, 0.0)
    else:
        alpha = unit(pha + example.to(tl.int64) * pixels + at, inside)
    return alpha


@triton.jit(do_not_specialize=["height", "width"], do_not_specialize_on_alignment=["table"])
def compose(
    fgr, pha, bgr, planes, shades, table, means, words, quantiles,
    out_src, out_bgr, out_fgr, out_pha, moved, height, width, pixels,
    LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Jitter, compose with the shadow, add the noise and jitter the captured background. Grid: (blocks, n).

    `LAST`: whether `out_src` and `out_bgr` have their channels last. Backgrounds that are moved afterwards go to `moved`.
    """
    example, count = tl.program_id(1), tl.num_programs(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    row = table + example * ROW
    fgr_plane = tl.load(row + FGR_PLANE).to(tl.int32)
    fr, fg, fb = colours(fgr, planes, example, fgr_plane, pixels, at, inside)
    mean = tl.load(means + example)
    for place in range(4):
        fr, fg, fb = blended(fr, fg, fb, row, place, mean)
    _store(out_fgr, example, pixels, at, inside, fr, fg, fb, False)
    alpha = _alpha(pha, planes, example, fgr_plane, pixels, at, inside)
    tl.store(out_pha + example.to(tl.int64) * pixels + at, alpha, inside)
    bgr_plane = tl.load(row + BGR_PLANE).to(tl.int32)
    br, bg, bb = colours(bgr, planes, example, bgr_plane, pixels, at, inside)
    mean = tl.load(means + count + example)
    for place in range(4):
        br, bg, bb = blended(br, bg, bb, row + BGR_JITTER, place, mean)
    shade = tl.zeros([BLOCK], tl.float32)
    shadow = tl.load(row + SHADE).to(tl.int32)
    if shadow >= 0:
        shade = tl.load(shades + shadow.to(tl.int64) * pixels + at, inside, 0.0)
    sr, sg, sb = over(fr, fg, fb, alpha, br - shade, bg - shade, bb - shade)
    noise = tl.load(row + NOISE).to(tl.int32)
    if noise >= 0:
        mine = words + noise.to(tl.int64) * 6 * (height + width)
        y, x = at // width, at % width
        deviation = tl.load(row + SRC_DEVIATION)
        sr, sg, sb = noisy(sr, sg, sb, mine, quantiles, 0, deviation, height, width, y, x, inside)
        deviation = tl.load(row + BGR_DEVIATION)
        br, bg, bb = noisy(br, bg, bb, mine, quantiles, 3, deviation, height, width, y, x, inside)
    _store(out_src, example, pixels, at, inside, sr, sg, sb, LAST)
    if tl.load(row + IS_CAPTURED) > 0:
        for place in range(4):
            br, bg, bb = plain(br, bg, bb, row + CAPTURED_JITTER, place)
    target = tl.load(row + MOVED).to(tl.int32)
    if target >= 0:
        _store(moved, target, pixels, at, inside, br, bg, bb, False)
    else:
        _store(out_bgr, example, pixels, at, inside, br, bg, bb, LAST)


@triton.jit(do_not_specialize=["height", "width"], do_not_specialize_on_alignment=["work"])
def blur(
    source, target, work, height, width, pixels,
    DOWN: tl.constexpr, SHARPEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Average planes along one direction. Grid: (blocks, planes).

    `work` has a row for each: its plane in `source`, that in `target`, the radius. `SHARPEN`: what is in `target` is the picture of
    which this is the blurred one.
    """
    row = work + tl.program_id(1) * 3
    start = source + tl.load(row).to(tl.int64) * pixels
    out = target + tl.load(row + 1).to(tl.int64) * pixels
    radius = tl.load(row + 2)
    reach = radius.to(tl.int32) + 1
    rest = radius - (reach - 1).to(tl.float32)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    y, x = at // width, at % width
    total = tl.zeros([BLOCK], tl.float32)
    for step in range(2 * reach + 1):
        if DOWN:
            near = tl.minimum(tl.maximum(y + step - reach, 0), height - 1) * width + x
        else:
            near = y * width + tl.minimum(tl.maximum(x + step - reach, 0), width - 1)
        weight = tl.where((step == 0) | (step == 2 * reach), rest, 1.0)
        total += tl.load(start + near, inside, 0.0) * weight
    mean = tl.div_rn(total, 2 * radius + 1)
    if DOWN:
        mean = clamped(mean)
    if SHARPEN:
        mean = clamped(tl.load(out + at, inside, 0.0) * 2.125 - mean * 1.125)
    tl.store(out + at, mean, inside)


@triton.jit
def _corner(start, step, y, x, height, width, weight, inside):
    there = inside & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return tl.load(start + (y * width + x) * step, there, 0).to(tl.float32) * weight


@triton.jit
def _sampled(start, step, y, x, height, width, inside):
    """Return the bilinear values at (y, x) of a picture whose pixels are `step` apart, 0 outside."""
    top, left = tl.floor(y), tl.floor(x)
    down, right = y - top, x - left
    i, j = top.to(tl.int32), left.to(tl.int32)
    value = _corner(start, step, i, j, height, width, (1 - down) * (1 - right), inside)
    value += _corner(start, step, i, j + 1, height, width, (1 - down) * right, inside)
    value += _corner(start, step, i + 1, j, height, width, down * (1 - right), inside)
    return value + _corner(start, step, i + 1, j + 1, height, width, down * right, inside)


@triton.jit
def _origin(row, height, width, at):
    """Return from where in the picture the pixels `at` come, y and x, of a map in pixels from the middle."""
    half_y, half_x = 0.5 * height.to(tl.float32) - 0.5, 0.5 * width.to(tl.float32) - 0.5
    from_y = (at // width).to(tl.float32) - half_y
    from_x = (at % width).to(tl.float32) - half_x
    x = tl.load(row) * from_x + tl.load(row + 1) * from_y + tl.load(row + 2)
    y = tl.load(row + 3) * from_x + tl.load(row + 4) * from_y + tl.load(row + 5)
    return y + half_y, x + half_x


@triton.jit(do_not_specialize=["height", "width"], do_not_specialize_on_alignment=["work"])
def cast_shadows(pha, planes, shades, work, height, width, pixels, BLOCK: tl.constexpr):
    """Move alphas to where their shadows fall. Grid: (blocks, shadows).

    `work` has a row for each: its example in `pha`, 0..255; its plane in `planes`, which is used if it is 0 or more; the
    shadow's strength; and the six numbers of the map from a place in the result to one in the picture.
    """
    row = work + tl.program_id(1) * 9
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    y, x = _origin(row + 3, height, width, at)
    plane = tl.load(row + 1).to(tl.int32)
    if plane >= 0:
        value = _sampled(planes + plane.to(tl.int64) * pixels, 1, y, x, height, width, inside)
    else:
        start = pha + tl.load(row).to(tl.int64) * pixels
        value = tl.div_rn(_sampled(start, 1, y, x, height, width, inside), 255.0)
    out = shades + tl.program_id(1).to(tl.int64) * pixels + at
    tl.store(out, clamped(value) * tl.load(row + 2), inside)


@triton.jit(do_not_specialize=["height", "width"], do_not_specialize_on_alignment=["work"])
def move_captured(moved, out, work, height, width, pixels, LAST: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Move captured backgrounds (k, 3, h, w) to their examples' places in `out`. Grid: (blocks, k).

    `work` has a row for each: its example, and the map as in `cast_shadows`. `LAST`: whether `out` has its channels last.
    """
    row = work + tl.program_id(1) * 7
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pixels
    y, x = _origin(row + 1, height, width, at)
    start = moved + tl.program_id(1).to(tl.int64) * 3 * pixels
    r = clamped(_sampled(start, 1, y, x, height, width, inside))
    g = clamped(_sampled(start + pixels, 1, y, x, height, width, inside))
    b = clamped(_sampled(start + 2 * pixels, 1, y, x, height, width, inside))
    _store(out, tl.load(row).to(tl.int32), pixels, at, inside, r, g, b, LAST)
