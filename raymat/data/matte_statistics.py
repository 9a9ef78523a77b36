"""What the numbers of a matte make likely: that it is inverted, empty, a mask without soft edges, a photograph.

A judgement refuses nothing: a dataset may have a frame without a person. It is for people, with a count and an example.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

CLEAR, OPAQUE = 25, 230
"""At or below, at or above: transparent, opaque, of 255. Pixels between are soft."""
_ROWS = 8
"""Rows that are looked at."""
_COLUMNS = 256
"""Columns, or pixels of a side, that are looked at where neighbours do not matter."""
_MARGIN = 16
"""By how much, of 255, lossy formats may brighten a pixel."""


@dataclass(frozen=True)
class MatteStatistics:
    """Numbers of one matte, from a sample of its rows. Values are of 255, shares in 0..1."""

    low: int
    """The lowest value; of all rows where the sample has only one value."""
    high: int
    """The highest value, likewise."""
    mean: float
    rim: float
    """Mean along the four sides."""
    soft: float
    """Share of pixels that are neither transparent nor opaque."""
    edge: float | None
    """Soft pixels to each step, along a row, between a transparent or soft and an opaque half; None: no such step."""
    depth: int = 8
    """Bits of a pixel in the file."""
    flat: float = 0.0
    """Share of the soft pixels whose values are within 2 of the most frequent one."""
    ends: float = 1.0
    """Share of pixels that are next to 0 or to 255."""
    above: float | None = None
    """Share of soft pixels where the foreground is brighter than its alpha, which no premultiplied one is; None: not known."""

    @classmethod
    def of(
        cls,
        matte: NDArray[np.uint8],
        foreground: NDArray[np.uint8] | None = None,
        depth: int = 8,
    ) -> MatteStatistics:
        """Measure a matte (h, w) that is not shrunk, with its foreground (h, w, 3), if there is one."""
        sample = np.ascontiguousarray(matte[_rows(matte)])
        counts = cv2.calcHist([sample], [0], None, [256], [0, 256]).reshape(-1)
        present = counts.nonzero()[0]
        low, high = int(present[0]), int(present[-1])
        if low == high:
            low, high = int(matte.min()), int(matte.max())
        between = counts[CLEAR + 1 : OPAQUE]
        soft = float(between.sum())
        most = float(np.convolve(between, np.ones(5)).max())
        halves = sample > 127
        steps = np.count_nonzero(halves[:, 1:] ^ halves[:, :-1])
        found = cls(
            low=low,
            high=high,
            mean=float(counts @ _VALUES) / sample.size,
            rim=_rim(matte),
            soft=soft / sample.size,
            edge=soft / steps if steps else None,
            depth=depth,
            flat=most / soft if soft else 0.0,
            ends=float(counts[:_END].sum() + counts[-_END:].sum()) / sample.size,
        )
        return found if foreground is None else found.beside(foreground, matte)

    def beside(self, foreground: NDArray[np.uint8], matte: NDArray[np.uint8]) -> MatteStatistics:
        """Return the statistics with what the foreground (h, w, 3) adds; both may be shrunk, by as much."""
        at = (_rows(matte), slice(None, None, _stride(matte.shape[1])))
        alpha, colours = matte[at], foreground[at]
        soft = (alpha > CLEAR) & (alpha < OPAQUE)
        opaque = colours[alpha >= OPAQUE]
        if np.count_nonzero(soft) < _FEWEST or not len(opaque) or opaque.max() < 128:
            return self  # nothing to see it by, or too dark
        brighter = colours[soft].max(axis=1) > alpha[soft].astype(np.int16) + _MARGIN
        return replace(self, above=float(brighter.mean()))


_VALUES = np.arange(256, dtype=np.float32)
_LEAST_FLAT = 0.01
"""Share of soft pixels from which on their values are judged."""
_END = 8
"""Values from 0, and up to 255, that no limited range has."""
_FEWEST_ENDS = 0.05
"""Share of pixels with such values below which a matte is of limited range; ringing of lossy formats makes some."""
_FEWEST = 12
"""Soft pixels from which on a foreground is judged by them."""

LIKELY = {
    "inverted": "look inverted: opaque along the sides, transparent in the middle",
    "empty": "are transparent everywhere",
    "void": "are transparent everywhere, or have 8 bits or fewer in a 16-bit file",
    "full": "are opaque everywhere",
    "faint": "are opaque nowhere",
    "shallow": "look like 12 bits or fewer in a 16-bit file: nearly black, as they are read",
    "hard": "have hardly any soft edge: masks rather than mattes",
    "flat": "have one value wherever they are soft: trimaps, or masks that are not of full strength",
    "limited": "reach neither 0 nor 255, as video of limited range (16 to 235): all of the picture shows through, or is kept",
    "photograph": "are half transparent nearly everywhere, as a photograph is",
    "premultiplied": "seem to have foregrounds already multiplied by their alpha: their edges will be too dark",
}
"""What a matte may be, by kind; the words follow a number of mattes."""


def judge(matte: MatteStatistics) -> tuple[str, ...]:
    """Return what a matte is likely to be, as keys of `LIKELY`; empty if it looks as mattes do."""
    if matte.high == 0:
        return ("void" if matte.depth == 16 else "empty",)
    if matte.low == 255:
        return ("full",)
    if matte.high < 128:
        return ("shallow" if matte.depth == 16 and matte.high < 16 else "faint",)
    found = {
        "photograph": matte.soft > 0.5,
        "inverted": matte.rim > 128 and matte.mean < matte.rim - 8 and matte.soft <= 0.5,
        "limited": matte.ends < _FEWEST_ENDS and matte.soft <= 0.5,
        "flat": matte.soft > _LEAST_FLAT and matte.flat > 0.95,
        "hard": matte.edge is not None and matte.edge < 0.5,
        "premultiplied": matte.above is not None and matte.above < 0.03,
    }
    return tuple(kind for kind, is_so in found.items() if is_so)


def _rows(matte: NDArray[np.uint8]) -> slice:
    step = max(1, len(matte) // _ROWS)
    return slice(step // 2, None, step)


def _stride(pixels: int) -> int:
    return max(1, pixels // _COLUMNS)


def _rim(matte: NDArray[np.uint8]) -> float:
    sides = (matte[0], matte[-1], matte[:, 0], matte[:, -1])
    return float(np.concatenate([side[:: _stride(side.size)] for side in sides]).mean())
