"""Drawing primitives of the procedural pictures, in coordinates that are independent of the picture's size.

Points are (..., 2) arrays of (x, y): 0 is the picture's centre, 1 its shorter side, x to the right and y down. Lengths, widths and
blurs are in shorter sides too. Layers are uint8 arrays of the picture's size with one or three channels; fields are float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from raymat.data.rng import Draws

Pixels = NDArray[np.uint8]
Field = NDArray[np.float32]
Points = NDArray[np.float64]

_FRACTION_BITS = 6  # of a pixel, in the coordinates given to OpenCV


def as_field(array: NDArray[Any]) -> Field:
    """Convert what OpenCV returned to a field; its type hints are too loose."""
    return np.asarray(array, dtype=np.float32)


def as_pixels(array: NDArray[Any]) -> Pixels:
    """Convert what OpenCV returned to a layer."""
    return np.asarray(array, dtype=np.uint8)


@dataclass(frozen=True)
class Canvas:
    """Canvas of `width` x `height` pixels; everything drawn is anti-aliased."""

    width: int
    height: int

    @classmethod
    def of(cls, size: int | tuple[int, int]) -> Canvas:
        """Make a square of `size` pixels, or (width, height)."""
        width, height = size if isinstance(size, tuple) else (size, size)
        if width < 1 or height < 1:
            raise ValueError(f"a picture needs at least one pixel, got {width} x {height}")
        return cls(width, height)

    @property
    def unit(self) -> int:
        """Pixels of the shorter side."""
        return min(self.width, self.height)

    def scaled(self, unit: int) -> Canvas:
        """Return a canvas of the same proportions whose shorter side has `unit` pixels."""
        return Canvas(round(self.width * unit / self.unit), round(self.height * unit / self.unit))

    def layer(self, *colour: int) -> Pixels:
        """Return a layer of one colour: (h, w) for one number, (h, w, 3) for three."""
        shape = (self.height, self.width) if len(colour) == 1 else (self.height, self.width, 3)
        return np.full(shape, colour if len(colour) > 1 else colour[0], dtype=np.uint8)

    def grid(self) -> tuple[Field, Field]:
        """Return x as (1, w) and y as (h, 1) of the pixels' centres."""
        x = (np.arange(self.width) + 0.5 - self.width / 2) / self.unit
        y = (np.arange(self.height) + 0.5 - self.height / 2) / self.unit
        return x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]

    def _fixed(self, points: Points) -> NDArray[np.int32]:
        """Convert to pixel coordinates with `_FRACTION_BITS` binary places; whole numbers are pixel centres."""
        origin = np.array([self.width - 1, self.height - 1]) / 2
        fixed = np.rint((points * self.unit + origin) * 2**_FRACTION_BITS)
        return np.asarray(fixed, dtype=np.int32)

    def fill(
        self, layer: Pixels, outline: Points, colour: tuple[int, ...], grow: float = 0.0
    ) -> None:
        """Fill the closed `outline` (n, 2), made larger by `grow` on all sides."""
        corners = [self._fixed(outline)]
        cv2.fillPoly(layer, corners, colour, cv2.LINE_AA, _FRACTION_BITS)
        if grow > 0:
            thickness = max(1, round(2 * grow * self.unit))
            cv2.polylines(layer, corners, True, colour, thickness, cv2.LINE_AA, _FRACTION_BITS)

    def strokes(self, layer: Pixels, lines: Points, width: float, opacity: float) -> None:
        """Draw `lines` (n, k, 2) on a one-channel layer.

        Lines thinner than a pixel are fainter instead: less than in proportion, since they lie close together.
        """
        pixels = width * self.unit
        colour = round(255 * opacity * min(1.0, pixels) ** 0.6)
        thickness = max(1, round(pixels))
        cv2.polylines(
            layer,
            list(self._fixed(lines)),
            False,
            (colour,),
            thickness,
            cv2.LINE_AA,
            _FRACTION_BITS,
        )

    def blur(self, field: Field, deviation: float) -> Field:
        """Blur with a Gaussian, edge pixels repeated outwards; wide blurs are made on a smaller picture."""
        pixels = deviation * self.unit
        if pixels < 0.25:
            return field
        shrink = max(1, int(pixels / 3))
        if shrink > 1:
            small = (math.ceil(self.width / shrink), math.ceil(self.height / shrink))
            field = as_field(cv2.resize(field, small, interpolation=cv2.INTER_AREA))
        sigma = pixels / shrink
        blurred = cv2.GaussianBlur(field, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        field = as_field(blurred)
        return field if shrink == 1 else self.stretch(field, cv2.INTER_LINEAR)

    def stretch(self, field: Field, interpolation: int = cv2.INTER_CUBIC) -> Field:
        """Resize any field to the picture."""
        shrinks = field.shape[1] > self.width or field.shape[0] > self.height
        how = cv2.INTER_AREA if shrinks else interpolation
        return as_field(cv2.resize(field, (self.width, self.height), interpolation=how))

    def noise(
        self, draws: Draws, cells: int, octaves: int, gain: float = 0.6, channels: int = 1
    ) -> Field:
        """Draw value noise around 0, deviation near 1/2: lattices of `cells`, 2 `cells`, ... values a side, each weaker by `gain`.

        (h, w) for one channel, (h, w, 3) for three.
        """
        total: Field | None = None
        weight, power = 1.0, 0.0
        for octave in range(octaves):
            side = cells << octave
            values = draws.uniforms(side * side * channels).astype(np.float32)
            values = (values.reshape(side, side, channels) * 2 - 1) * weight
            if total is not None:
                larger = cv2.resize(total, (side, side), interpolation=cv2.INTER_CUBIC)
                values += as_field(larger).reshape(values.shape)  # a single channel was dropped
            total = values
            power += weight**2
            weight *= gain
        assert total is not None
        total *= np.float32(0.9 / math.sqrt(power))
        return self.stretch(total)


def blob(
    centre: tuple[float, float],
    radii: tuple[float, float],
    turn: float = 0.0,
    waves: NDArray[np.float64] | None = None,
    square: float = 2.0,
) -> Points:
    """Return a smooth closed outline (96, 2): a superellipse (`square` 2: an ellipse) turned by `turn` radians.

    `waves` (n, 2) are amplitude and phase (in turns) of the 2nd, 3rd, ... harmonic of the radius.
    """
    angle = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    radius = (np.abs(cos) ** square + np.abs(sin) ** square) ** (-1 / square)
    if waves is not None:
        for harmonic, (amplitude, phase) in enumerate(waves, start=2):
            radius = radius * (1 + amplitude * np.cos(harmonic * angle + 2 * math.pi * phase))
    x, y = radii[0] * radius * cos, radii[1] * radius * sin
    c, s = math.cos(turn), math.sin(turn)
    return np.stack((centre[0] + c * x - s * y, centre[1] + s * x + c * y), axis=-1)


def limb(start: Points, bend: Points, end: Points, widths: tuple[float, float]) -> Points:
    """Return a closed outline along the quadratic curve from `start` to `end` drawn towards `bend`, round at both ends.

    `widths` are the half widths at the two ends.
    """
    t = np.linspace(0, 1, 24)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    along = 2 * (1 - t) * (bend - start) + 2 * t * (end - bend)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    across = np.stack((-along[:, 1], along[:, 0]), axis=-1)
    half = widths[0] + (widths[1] - widths[0]) * t
    turn = np.linspace(-math.pi / 2, math.pi / 2, 9)[1:-1, None]
    cap_end = end + widths[1] * (np.cos(turn) * along[-1] + np.sin(turn) * across[-1])
    cap_start = start - widths[0] * (np.cos(turn) * along[0] + np.sin(turn) * across[0])
    left, right = curve - half * across, curve + half * across
    return np.concatenate((left, cap_end, right[::-1], cap_start))
