"""A picture of the first examples that a run trains on, as the network sees them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from raymat.analysis.contact_sheet import Column, images, png
from raymat.analysis.preflight.subject import Subject
from raymat.analysis.run_pictures import RunPictures
from raymat.data.composite import Composed

ROWS = 8
"""Examples in the picture."""
SIDE = 256
"""Side of each of its pictures, in pixels."""
_CAPTIONS = ("source", "captured background", "true alpha", "true foreground")


def sample_sheet(subject: Subject) -> bytes:
    """Return a PNG of the first training examples: composited and augmented source, background, alpha, foreground.

    The subject is one that has something to train on.

    Raises:
        DataError: pictures cannot be had.
    """
    columns: list[list[NDArray[np.uint8]]] = [[] for _ in _CAPTIONS]
    assert subject.source is not None
    pictures = RunPictures(subject.config, subject.source)
    composed = pictures.train(ROWS, torch.device("cpu"))
    for batch in composed:
        for column, shown in zip(columns, _shown(batch), strict=True):
            column += shown
        if len(columns[0]) >= ROWS:
            break
    made = [Column(c, column[:ROWS]) for c, column in zip(_CAPTIONS, columns, strict=True)]
    return png(made, SIDE)


def _shown(batch: Composed) -> list[list[NDArray[np.uint8]]]:
    covered = batch.fgr * (batch.pha > 0)
    return [[*map(_square, images(x))] for x in (batch.src, batch.bgr, batch.pha, covered)]


def _square(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture in the middle of a grey square: crops have any ratio of sides."""
    height, width = picture.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 128, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
