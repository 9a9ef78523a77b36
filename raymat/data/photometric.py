"""Photometric operations on one picture: blur, sharpen, colour jitter, small affine warps, noise.

Pictures are planar float tensors (channels, height, width) with values in 0..1, on any device. As everywhere in torch, a function
whose name ends in an underscore changes its picture in place and returns it; the others leave it as it was. All parameters are
plain numbers from the host, so that nothing here waits for a GPU. There is no convolution and no matrix product: their
arithmetic depends on TF32, autocast and the library's choice of algorithm, while a sum of shifted pictures is always the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from raymat.data.compositing.photometric_draws import Affine, Jitter, JitterStep


def box_blur(x: Tensor, radius: float) -> Tensor:
    """Average over a box of 2 * radius + 1 pixels in both directions, with edge pixels repeated outwards.

    A fractional radius m + f (m whole) weighs the 2m + 1 nearest pixels with 1 and the next on either side with f: the extended
    box filter of Gwosdek et al. ("Theoretical Foundations of Gaussian Convolution by Extended Box Filtering", SSVM 2011),
    which is also what Pillow's `ImageFilter.BoxBlur` does. Radius 0 is the identity.
    """
    if radius <= 0:
        return x
    return _box_mean(_box_mean(x, radius, -1), radius, -2).clamp_(0, 1)


def _box_mean(x: Tensor, radius: float, dim: int) -> Tensor:
    """Blur along one dimension (-1 or -2)."""
    whole = math.floor(radius)
    rest = radius - whole
    reach = whole + (rest > 0)
    padded = F.pad(x, (reach, reach, 0, 0) if dim == -1 else (0, 0, reach, reach), mode="replicate")
    length = x.shape[dim]
    inner = padded.narrow(dim, reach - whole, length + 2 * whole)
    total = _window_sums(inner, 2 * whole + 1, dim)
    if rest > 0:
        ends = padded.narrow(dim, 0, length) + padded.narrow(dim, 2 * reach, length)
        total = torch.add(total, ends, alpha=rest)
    return total / (2 * radius + 1)


def _window_sums(x: Tensor, width: int, dim: int) -> Tensor:
    """Sum every `width` adjacent values along `dim`, which gets `width - 1` shorter.

    Sums over 1, 2, 4, 8 ... values are made by doubling and those in `width`'s binary digits added up: about 2 log2(width)
    passes, and no running sum, whose rounding error would grow along the row.
    """
    length = x.shape[dim] - width + 1
    span, offset, doubled = 1, 0, x
    total: Tensor | None = None
    while True:
        if width & span:
            part = doubled.narrow(dim, offset, length)
            total = part if total is None else total + part
            offset += span
        if 2 * span > width:
            assert total is not None
            return total
        steps = doubled.shape[dim] - span
        doubled = doubled.narrow(dim, 0, steps) + doubled.narrow(dim, span, steps)
        span *= 2


def sharpen(x: Tensor, scale: float = 1.0) -> Tensor:
    """Sharpen as Pillow's `ImageFilter.SHARPEN` (3x3, centre 32, ring -2, over 16), clamped to 0..1, edge pixels repeated outwards.

    The kernel is x + 9/8 * (x - box mean of radius 1), written so that it scales: at `scale` the radius is `scale` pixels.
    """
    return torch.mul(x, 2.125).sub_(box_blur(x, scale), alpha=1.125).clamp_(0, 1)


def grey(x: Tensor) -> Tensor:
    """Return the luma (1, h, w) of an RGB picture (3, h, w): 0.2989 R + 0.587 G + 0.114 B."""
    red, green, blue = x
    return torch.mul(red, 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(0)


def brightness_(x: Tensor, factor: float) -> Tensor:
    """Multiply the picture by `factor`, clamped to 0..1."""
    return x.mul_(factor).clamp_(0, 1)


def contrast_(x: Tensor, factor: float) -> Tensor:
    """Blend `factor` of the picture and 1 - `factor` of its mean luma, clamped to 0..1."""
    red, green, blue = x.sum(-1).sum(-1, dtype=torch.float64)
    mean = (0.2989 * red + 0.587 * green + 0.114 * blue) / x[0].numel()
    return x.mul_(factor).add_(mean.to(x.dtype), alpha=1 - factor).clamp_(0, 1)


def saturation_(x: Tensor, factor: float) -> Tensor:
    """Blend `factor` of the picture and 1 - `factor` of its luma, clamped to 0..1."""
    luma = grey(x)
    return x.mul_(factor).add_(luma, alpha=1 - factor).clamp_(0, 1)


def shift_brightness_(x: Tensor, factor: float) -> Tensor:
    """Add `factor` - 1 to the picture, clamped to 0..1."""
    return x.add_(factor - 1).clamp_(0, 1)


def hsv_saturation_(x: Tensor, factor: float) -> Tensor:
    """Multiply every pixel's saturation in HSV by `factor`, clamped to 0..1, keeping its hue and value.

    The distances of its components from the largest are multiplied, by no more than makes the smallest component 0.
    """
    value = x.amax(0)
    if factor <= 1:
        return x.sub_(value).mul_(factor).add_(value).clamp_(0, 1)
    chroma = (value - x.amin(0)).clamp_min_(torch.finfo(x.dtype).tiny)
    stretch = torch.div(value, chroma, out=chroma).clamp_max_(factor)
    return x.sub_(value).mul_(stretch).add_(value).clamp_(0, 1)


def hue_(x: Tensor, turns: float) -> Tensor:
    """Shift the hue of every pixel by `turns` (1 = once around), keeping its value and saturation in HSV.

    With M and m a pixel's largest and smallest component and C = M - m, its hue in sixths of a turn away from red (-3..3, green at
    2, blue at -2) is 2 + (G + B - R - M) / C with the sign of G - B; and a component of a colour is m + C * w, with w = 1 up to one
    sixth from the component's own hue, 0 from two sixths on and linear between: the hexcone model (Smith, "Color Gamut
    Transform Pairs", SIGGRAPH 1978) without its case distinctions, which cost more than the arithmetic.
    """
    red, green, blue = x
    largest, smallest = x.amax(0), x.amin(0)
    hue = (green + blue).sub_(red).sub_(largest)
    chroma = largest.sub_(smallest)
    scratch = chroma.clamp_min(torch.finfo(x.dtype).tiny)  # without chroma any hue will do
    hue.div_(scratch).add_(2)
    hue.copysign_(torch.sub(green, blue, out=scratch))
    for plane, own in zip((red, green, blue), (0, 2, -2), strict=True):
        shift = (6 * turns - own + 3) % 6 - 3
        # |hue + shift| is 0..6, its distance from the component's own hue 3 - | |hue + shift| - 3 |.
        torch.add(hue, shift, out=plane)
    return x.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1).mul_(chroma).add_(smallest)


def jitter_(x: Tensor, parameters: Jitter) -> Tensor:
    """Apply the four adjustments of `parameters`, in its order, to an RGB picture (3, h, w), as torchvision computes them."""
    return _adjust_(x, parameters, _BLENDED)


def plain_jitter_(x: Tensor, parameters: Jitter) -> Tensor:
    """Apply the four as kornia 0.4.1 does: brightness is added, contrast multiplies, saturation is HSV's.

    No adjustment looks at more than its pixel. On dark pictures it changes far more than `jitter_`, whose brightness and
    contrast shrink with the picture.
    """
    return _adjust_(x, parameters, _PLAIN)


_Adjust: TypeAlias = Mapping[JitterStep, Callable[[Tensor, float], Tensor]]

_BLENDED: _Adjust = {
    "brightness": brightness_,
    "contrast": contrast_,
    "saturation": saturation_,
    "hue": hue_,
}
_PLAIN: _Adjust = {
    "brightness": shift_brightness_,
    "contrast": brightness_,
    "saturation": hsv_saturation_,
    "hue": hue_,
}


def _adjust_(x: Tensor, parameters: Jitter, adjust: _Adjust) -> Tensor:
    for step in parameters.order:
        adjust[step](x, getattr(parameters, step))
    return x


def affine_warp(x: Tensor, affine: Affine) -> Tensor:
    """Move the picture by `affine`: bilinear, the same size, 0 outside of the picture.

    Positions are in pixels from the centre, x to the right and y down, so that a turn stays a turn in an oblong picture.
    """
    height, width = x.shape[-2:]
    to_x, to_y = inverse_map(affine, width, height)
    columns = _centred(width, x)
    rows = _centred(height, x).unsqueeze(1)
    # grid_sample wants places as -1..1 over the picture's width and height.
    grid = x.new_empty((height, width, 2))
    for axis, (by_x, by_y, fixed), side in ((0, to_x, width), (1, to_y, height)):
        along, down = columns * (2 * by_x / side), rows * (2 * by_y / side) + 2 * fixed / side
        torch.add(along, down, out=grid[..., axis])
    moved = F.grid_sample(
        x.unsqueeze(0),
        grid.unsqueeze(0),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )
    return moved.squeeze(0).clamp_(0, 1)


def _centred(count: int, like: Tensor) -> Tensor:
    """Return the pixel centres along a side of `count` pixels, measured from its middle."""
    return torch.arange(count, dtype=like.dtype, device=like.device).add_(0.5 - count / 2)


def inverse_map(
    affine: Affine, width: int, height: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the rows of the 2x3 matrix from a place in the result to the place in the picture that it shows."""
    cos, sin = math.cos(math.radians(affine.degrees)), math.sin(math.radians(affine.degrees))
    slant = math.tan(math.radians(affine.shear))
    # Forward: scale * [cos, -sin; sin, cos] * [1, -slant; 0, 1]; the inverse undoes them the other way round.
    xx, xy = (cos - slant * sin) / affine.scale, (sin + slant * cos) / affine.scale
    yx, yy = -sin / affine.scale, cos / affine.scale
    dx, dy = affine.translate[0] * width, affine.translate[1] * height
    return (xx, xy, -xx * dx - xy * dy), (yx, yy, -yx * dx - yy * dy)


def noise_(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add normal noise of the given standard deviation from `generator`, clamped to 0..1.

    The field is always drawn in single precision, so that a run in double precision sees the same noise.
    """
    field = torch.randn(x.shape, generator=generator, device=x.device, dtype=torch.float32)
    return x.add_(field.to(x.dtype), alpha=deviation).clamp_(0, 1)
