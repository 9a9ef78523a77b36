"""Alignment of a background with its source by a homography, for cameras that moved a little in between."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from raymat.data.decode import Pixels

FEATURES = 5000
"""Corners looked for in each picture."""
TOLERANCE = 3.0
"""Pixels by which a match may miss the homography."""
LEAST_SIDE = 64
"""Pixels: smaller pictures have no corners to find, and OpenCV cannot shrink them."""
LEAST_MATCHES = 20
"""Matches that must agree: four lie on some homography always."""
LARGEST_MOVE = 0.25
"""Of the diagonal: a corner that would move further was not filmed by a camera that stood still."""


class _Features(NamedTuple):
    points: NDArray[np.float32]
    """(n, 2), x and y in pixels."""
    descriptors: NDArray[np.uint8]


class Aligner:
    """Finder of the homography from background to source, by ORB features and RANSAC, the same each time.

    The features of the last background are kept: many frames share one. It belongs to one thread.
    """

    def __init__(self) -> None:
        self._detector = cv2.ORB.create(nfeatures=FEATURES)
        self._matcher = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True)
        self._known: tuple[Pixels, _Features | None] | None = None

    def align(self, source: Pixels, background: Pixels) -> Pixels | None:
        """Return the background as the source's camera saw it, in the source's size.

        What lies outside of the background is copied from the source. None if too little of both matches.
        """
        found = self.homography(source, background)
        if found is None:
            return None
        size = (source.shape[1], source.shape[0])
        warped = cv2.warpPerspective(background, found, size, flags=cv2.INTER_LINEAR)
        there = np.full(background.shape[:2], 255, np.uint8)
        inside = cv2.warpPerspective(there, found, size, flags=cv2.INTER_LINEAR) == 255
        return np.where(inside[..., None], warped, source).astype(np.uint8)

    def homography(self, source: Pixels, background: Pixels) -> NDArray[np.float64] | None:
        """Return the matrix (3, 3) from background to source pixels, or None."""
        ours, theirs = self._features(source), self._background_features(background)
        if ours is None or theirs is None:
            return None
        matches = self._matcher.match(theirs.descriptors, ours.descriptors)
        if len(matches) < LEAST_MATCHES:
            return None
        start = theirs.points[[match.queryIdx for match in matches]]
        end = ours.points[[match.trainIdx for match in matches]]
        found, agreeing = cv2.findHomography(start, end, cv2.RANSAC, TOLERANCE)
        if found is None or int(agreeing.sum()) < LEAST_MATCHES:
            return None
        matrix = np.asarray(found, np.float64)
        return matrix if _is_small(matrix, background, source) else None

    def _background_features(self, background: Pixels) -> _Features | None:
        if self._known is None or self._known[0] is not background:
            self._known = (background, self._features(background))
        return self._known[1]

    def _features(self, pixels: Pixels) -> _Features | None:
        if min(pixels.shape[:2]) < LEAST_SIDE:
            return None
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        points, descriptors = self._detector.detectAndCompute(grey, None)
        if descriptors is None or not len(points):
            return None
        places = np.array([point.pt for point in points], np.float32)
        return _Features(places, np.asarray(descriptors, np.uint8))


def _is_small(matrix: NDArray[np.float64], background: Pixels, source: Pixels) -> bool:
    """Return whether all corners stay near to where they are when the background is scaled to the source's size."""
    (height, width), (high, wide) = background.shape[:2], source.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    homogeneous = np.column_stack([corners, np.ones(4)]) @ matrix.T
    if (homogeneous[:, 2] <= 0).any():
        return False
    moved = homogeneous[:, :2] / homogeneous[:, 2:]
    expected = corners * np.array([wide / width, high / height])
    furthest = np.hypot(*(moved - expected).T).max()
    return bool(furthest <= LARGEST_MOVE * np.hypot(high, wide))
