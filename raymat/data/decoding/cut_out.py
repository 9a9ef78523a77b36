"""Cut-outs: the colours of transparent pixels, which say nothing but mix into the edges when a picture is shrunk and warped.

Tools that cut subjects out leave them black, or white. The subject's own colours are continued there.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_SAME = 16
"""Difference, of 255, between transparent pixels up to which they have one colour; lossy formats make so much."""
_SEEN = 26
"""Alpha from which on a pixel's colour is believed: below it, rounding makes much of it."""
REACH = 64
"""Pixels by which colours are continued at most: more than any interpolation takes in."""
_PIXELS = 2**22
"""Pixels that are worked on at once, in strips, beside `REACH` rows on both sides: they take five times a picture's memory."""


def continued(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB (h, w, 3) with the nearest visible colour in transparent pixels, if these all have one colour.

    What has many colours may be a photograph under its mask, and stays. `alpha`: (h, w), 0 transparent.
    """
    if not have_one_colour(colours, alpha == 0):
        return colours
    found = colours.copy()
    count = max(REACH, _PIXELS // colours.shape[1])
    for begin in range(0, len(colours), count):
        first, last = max(0, begin - REACH), begin + count + REACH
        rows = slice(begin - first, begin - first + count)
        _continue(found[begin : begin + count], colours[first:last], alpha[first:last], rows)
    return found


def have_one_colour(colours: NDArray[np.uint8], hidden: NDArray[np.bool_]) -> bool:
    """Return whether there are hidden pixels (h, w), and all are of one colour."""
    mask = hidden.astype(np.uint8)
    if not mask.any():
        return False
    limits = (cv2.minMaxLoc(plane, mask) for plane in cv2.split(colours))
    return all(most - least <= _SAME for least, most, *_ in limits)


def _continue(
    out: NDArray[np.uint8], colours: NDArray[np.uint8], alpha: NDArray[np.uint8], rows: slice
) -> None:
    """Fill the transparent pixels of `out`, which are the `rows` of what is looked at."""
    visible = np.flatnonzero((alpha >= _SEEN).any(axis=0))
    if not len(visible):
        return
    columns = slice(max(0, int(visible[0]) - REACH), int(visible[-1]) + 1 + REACH)
    colours, alpha = colours[:, columns], alpha[:, columns]
    unseen = (alpha < _SEEN).astype(np.uint8)
    far, labels = cv2.distanceTransformWithLabels(
        unseen, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    known = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    known[labels[unseen == 0]] = colours[unseen == 0]
    near = (alpha[rows] == 0) & (far[rows] <= REACH)
    out[:, columns][near] = known[labels[rows][near]]
