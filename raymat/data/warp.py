"""Geometric augmentation: one affine map from a picture's own pixels to a step's crop, drawn first, then applied.

The steps are those of BackgroundMattingV2's training (Lin et al., CVPR 2021). A picture of width x
height pixels is

1. turned, slanted, scaled and moved about its centre, with torchvision's convention for `affine`
   (below);
2. cropped around its centre to the frame, a square of S = `resolution` pixels, black where there is
   no picture;
3. perhaps mirrored;
4. shrunk from S to the longer side of the step's crop, and cropped around its centre to the step's
   height and width.

These are one affine map from picture to crop, so pixels are interpolated once. Coordinates are
continuous: x to the right, y down, pixel (i, j) covers i..i+1, j..j+1 and its centre is at (i +
0.5, j + 0.5); width x height pixels cover 0..width, 0..height.

Step 1 takes a point p to R S H (p - c) + t relative to the frame's centre, with the picture's
centre c = (width, height) / 2, H = [[1, -tan(shear)], [0, 1]], S the scale, R = [[cos a, -sin a],
[sin a, cos a]] (clockwise on the screen) and the translation t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from raymat.config.sections import Stage
from raymat.data.decode import SCALES, Pixels, Scale
from raymat.data.rng import Draws, Stream

Matrix = NDArray[np.float64]
"""A map (3, 3) of continuous homogeneous coordinates; the last row is 0, 0, 1."""

DEGREES = 5.0  # rotation and shear, either way
SHIFT = 0.1  # translation, either way
PAIR_ZOOM: dict[Stage, tuple[float, float]] = {"base": (0.4, 1.0), "refine": (0.3, 1.0)}
BACKGROUND_ZOOM = (1.0, 2.0)
VALID_PAIR_ZOOM = (0.3, 1.0)
VALID_BACKGROUND_ZOOM = (1.0, 1.2)


@dataclass(frozen=True)
class Warp:
    """Parameters of one picture's warp.

    Lengths are relative to `fit`, the scale at which the picture just covers the frame: max(S /
    width, S / height).
    """

    degrees: float
    """Rotation, -5..5, clockwise on the screen."""
    shear: float
    """Slant along x in degrees, -5..5."""
    shift_x: float
    """Translation, -0.1..0.1 of the picture's width at scale `fit`."""
    shift_y: float
    """The same of its height."""
    zoom: float
    """Scale, as a multiple of `fit`."""
    flip: bool = False
    """Mirrored left to right, within the frame."""


def draw_pair_warp(seed: int, number: int, stage: Stage, train: bool) -> Warp:
    """Draw the warp of foreground and alpha of one example, from its key alone."""
    if train:
        return _draw(Draws(seed, Stream.PAIR_WARP, number), PAIR_ZOOM[stage], may_flip=True)
    return _draw(Draws(seed, Stream.VALID_PAIR_WARP, number), VALID_PAIR_ZOOM, may_flip=False)


def draw_background_warp(seed: int, number: int, train: bool) -> Warp:
    """Draw the warp of one example's background, from its key alone."""
    if train:
        return _draw(Draws(seed, Stream.BACKGROUND_WARP, number), BACKGROUND_ZOOM, may_flip=True)
    draws = Draws(seed, Stream.VALID_BACKGROUND_WARP, number)
    return _draw(draws, VALID_BACKGROUND_ZOOM, may_flip=False)


def _draw(draws: Draws, zoom: tuple[float, float], may_flip: bool) -> Warp:
    return Warp(
        degrees=draws.uniform(-DEGREES, DEGREES),
        shear=draws.uniform(-DEGREES, DEGREES),
        shift_x=draws.uniform(-SHIFT, SHIFT),
        shift_y=draws.uniform(-SHIFT, SHIFT),
        zoom=draws.uniform(*zoom),
        flip=may_flip and draws.chance(0.5),
    )


def crop_map(warp: Warp, size: tuple[int, int], resolution: int, crop: tuple[int, int]) -> Matrix:
    """Return the map from a picture of `size` (width, height) to a step's crop of (height, width) pixels."""
    return _frame_to_crop(resolution, crop) @ _picture_to_frame(warp, size, resolution)


def _picture_to_frame(warp: Warp, size: tuple[int, int], resolution: int) -> Matrix:
    """Return the map of steps 1 to 3."""
    width, height = size
    fit = max(resolution / width, resolution / height)
    angle, slant = math.radians(warp.degrees), math.tan(math.radians(warp.shear))
    cos, sin, scale = math.cos(angle), math.sin(angle), fit * warp.zoom
    shift = (warp.shift_x * fit * width, warp.shift_y * fit * height)
    linear = [
        [scale * cos, -scale * (cos * slant + sin)],
        [scale * sin, scale * (cos - sin * slant)],
    ]
    about = (width / 2, height / 2)
    offset = [
        resolution / 2 + shift[i] - linear[i][0] * about[0] - linear[i][1] * about[1]
        for i in range(2)
    ]
    if warp.flip:
        linear[0] = [-value for value in linear[0]]
        offset[0] = resolution - offset[0]
    return np.array([[*linear[0], offset[0]], [*linear[1], offset[1]], [0.0, 0.0, 1.0]])


def _frame_to_crop(resolution: int, crop: tuple[int, int]) -> Matrix:
    """Return the map of step 4."""
    height, width = crop
    side = max(height, width)
    scale = side / resolution
    return np.array(
        [[scale, 0.0, (width - side) / 2], [0.0, scale, (height - side) / 2], [0.0, 0.0, 1.0]]
    )


def magnification(matrix: Matrix) -> float:
    """Return the largest factor by which a map stretches any length: its largest singular value."""
    (a, b), (c, d) = matrix[:2, :2].tolist()
    total = a * a + b * b + c * c + d * d
    spread = math.hypot(a * a + b * b - c * c - d * d, 2 * (a * c + b * d))
    return math.sqrt((total + spread) / 2)


def decode_scale(matrix: Matrix) -> Scale:
    """Return how much smaller a picture may be decoded for a map: the largest k of 1, 2, 4, 8 that leaves nothing to enlarge.

    Sampling the full picture 2 x 2 pixels at a time would skip most of it and alias; decoding at k
    averages it first.
    """
    stretch = magnification(matrix)
    return max((k for k in SCALES if k * stretch <= 1), default=1)


def warp_into(out: Pixels, pixels: Pixels, matrix: Matrix, scale: Scale = 1) -> None:
    """Fill `out` (h, w, 3) or (h, w) with a picture that was decoded at `scale`, seen through a map of its full size.

    Bilinear; 0 outside of the picture. `out` must be contiguous, and is written to directly.
    """
    filled = cv2.warpAffine(
        pixels,
        _index_map(matrix, scale),
        (out.shape[1], out.shape[0]),
        dst=out,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )
    _require_in_place(filled, out)


def warp_layers_into(
    outs: Sequence[Pixels], layers: Sequence[Pixels], matrix: Matrix, scale: Scale = 1
) -> None:
    """Fill RGB `outs[0]` (h, w, 3), and alpha `outs[1]` (h, w) if there is one, with the layers of a picture, as `warp_into`.

    Colours may have a fourth channel of no meaning, which is overwritten. OpenCV warps four channels in half the time of three
    and then one, with the same result to the bit.
    """
    colours = layers[0]
    if colours.shape[2] == 3:
        colours = np.asarray(cv2.cvtColor(colours, cv2.COLOR_RGB2RGBA), np.uint8)
    for alpha in layers[1:]:
        cv2.insertChannel(alpha, colours, 3)
    warped = np.empty((*outs[0].shape[:2], 4), np.uint8)
    warp_into(warped, colours, matrix, scale)
    _require_in_place(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=outs[0]), outs[0])
    for out in outs[1:]:
        _require_in_place(cv2.extractChannel(warped, 3, dst=out), out)


def _require_in_place(filled: Any, out: Pixels) -> None:
    assert filled.ctypes.data == out.ctypes.data, "OpenCV made a copy: is out contiguous uint8?"


def _index_map(matrix: Matrix, scale: Scale) -> Matrix:
    """Return the map (2, 3) from pixel indices of the crop back to those of the decoded picture, as OpenCV counts them.

    OpenCV has pixel centres at whole numbers: index = coordinate - 0.5. A picture decoded at k has
        coordinates 1/k as large.
    """
    a, b, x = matrix[0].tolist()
    c, d, y = matrix[1].tolist()
    area = (a * d - b * c) * scale
    linear = ((d / area, -b / area), (-c / area, a / area))
    rows = [[p, q, p * (0.5 - x) + q * (0.5 - y) - 0.5] for p, q in linear]
    return np.array(rows)
