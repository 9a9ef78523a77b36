"""Keeps the examples at which networks are worst, as small pictures, while all examples are measured."""

from __future__ import annotations

import heapq
import math

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from raymat.analysis.contact_sheet import CAPTION_PIXELS, Column, caption, images, png
from raymat.analysis.evaluation import METRICS, Measured, Values

KEPT = 8
"""Examples in the picture."""
SIDE = 224
"""Side of a small picture, in pixels."""

_COLUMNS = ("example", "source", "true alpha", "predicted alpha", "error")

_Shots = list[NDArray[np.uint8]]


class Worst:
    """The `KEPT` examples with the largest values of a metric, for each row of the table; of equal ones the first."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._heaps: list[list[tuple[float, int, _Shots]]] = []

    def see(self, measured: Measured, name: str) -> None:
        """Take the next example; `name` is that of its pair."""
        self._heaps = self._heaps or [[] for _ in measured.values]
        for heap, pha, values in zip(self._heaps, measured.alphas, measured.values, strict=True):
            value = values[self._metric]
            if value is None:
                continue
            # NaN is the worst of all.
            key = (math.inf if math.isnan(value) else value, -measured.example.number)
            if len(heap) < KEPT:
                heapq.heappush(heap, (*key, _shots(measured, pha, values, name)))
            elif key > heap[0][:2]:
                heapq.heapreplace(heap, (*key, _shots(measured, pha, values, name)))

    def png(self, row: int) -> bytes:
        """Encode the contact sheet of a row: one example a line, the worst first."""
        ordered = sorted(self._heaps[row], key=lambda kept: kept[:2], reverse=True)
        shots = [kept[2] for kept in ordered]
        return png([Column(c, [s[i] for s in shots]) for i, c in enumerate(_COLUMNS)], SIDE)


def _shots(measured: Measured, pha: Tensor, values: Values, name: str) -> _Shots:
    true = measured.truth.pha
    shown = [images(x)[0] for x in (measured.truth.src, true, pha, (pha - true).abs())]
    small = [cv2.resize(x, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for x in shown]
    return [_label(measured, values, name), *(np.asarray(x, np.uint8) for x in small)]


def _label(measured: Measured, values: Values, name: str) -> NDArray[np.uint8]:
    """Draw an example's number, name and values, black on white."""
    lines = [f"{measured.example.number}", name[-30:], ""]
    lines += [f"{m} {v:.4g}" for m in METRICS if (v := values[m]) is not None]
    text = np.concatenate([caption(line, SIDE) for line in lines])
    label = np.full((SIDE, SIDE, 3), 255, np.uint8)
    label[: len(text)] = text[:SIDE]
    return label


assert (3 + len(METRICS)) * CAPTION_PIXELS <= SIDE
