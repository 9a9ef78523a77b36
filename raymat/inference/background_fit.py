"""Makes a background lie under its source pixel by pixel: the same size, and, if asked, aligned."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from raymat.data.decode import Pixels
from raymat.errors import DataError
from raymat.inference.homography import Aligner
from raymat.inference.shots import Notes

SAME_SHAPE = 0.01
"""Largest relative difference of the ratio of sides between pictures of one shape."""


@dataclass(frozen=True)
class BackgroundFit:
    """How backgrounds are fitted to sources."""

    notes: Notes
    resize: bool = False
    """Whether a background of the same shape but another size is resized."""
    aligner: Aligner | None = None

    def __call__(self, source: Pixels, background: Pixels, shown: str) -> Pixels:
        """Return the background in the source's size. Raises DataError, with `shown`, if it does not fit."""
        if self.aligner is not None:
            aligned = self.aligner.align(source, background)
            if aligned is not None:
                return aligned
            self.notes.add("too little in common with its background to align it", shown)
        if source.shape == background.shape:
            return background
        if self.resize and _shape_differs(source, background) <= SAME_SHAPE:
            size = (source.shape[1], source.shape[0])
            smaller = background.shape[0] > source.shape[0]
            how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
            return np.asarray(cv2.resize(background, size, interpolation=how), np.uint8)
        raise DataError(f"{shown}: {self._misfit(source, background)}")

    def _misfit(self, source: Pixels, background: Pixels) -> str:
        sizes = f"is {_by(source)} pixels and its background {_by(background)}"
        if self.aligner is not None:
            return f"{sizes}, and they have too little in common to align them"
        if self.resize:
            return f"{sizes}, which is another shape: film both with one setting, or try --align"
        return f"{sizes}: film both with one setting, or give --background-fit to resize it, or --align"


def _shape_differs(source: Pixels, background: Pixels) -> float:
    ratios = [pixels.shape[1] / pixels.shape[0] for pixels in (source, background)]
    return abs(ratios[0] / ratios[1] - 1)


def _by(pixels: Pixels) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
