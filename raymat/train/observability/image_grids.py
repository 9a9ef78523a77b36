"""Image grids to look at, named as in the reference implementation."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

COLUMNS = 5
"""Pictures per row, as in the reference."""
LONGEST_SIDE = 512
"""Larger pictures are shrunk to this many pixels, since grids wait in memory until the next commit."""
_GAP = 2


def training_grids(pictures: Mapping[str, Tensor]) -> dict[str, NDArray[np.uint8]]:
    """Make the reference's six grids from pha, fgr, err, src and bgr, (n, c, h, w) in 0..1; none for n = 0.

    Reads from the device.
    """
    if not len(pictures["pha"]):
        return {}
    shown = {
        "train_pred_pha": pictures["pha"],
        "train_pred_fgr": pictures["fgr"],
        "train_pred_com": pictures["fgr"] * pictures["pha"],
        "train_pred_err": pictures["err"],
        "train_true_src": pictures["src"],
        "train_true_bgr": pictures["bgr"],
    }
    return {name: grid(x) for name, x in shown.items()}


@torch.no_grad()
def grid(pictures: Tensor) -> NDArray[np.uint8]:
    """Arrange (n, 3 or 1, h, w) in 0..1 as one picture (H, W, 3) or (H, W), five in a row, on black."""
    x = _shrink(pictures.float()).clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
    n, channels, h, w = x.shape
    columns = min(n, COLUMNS)
    rows = math.ceil(n / columns)
    canvas = np.zeros((rows * (h + _GAP) - _GAP, columns * (w + _GAP) - _GAP, channels), np.uint8)
    for i, picture in enumerate(x):
        top, left = i // columns * (h + _GAP), i % columns * (w + _GAP)
        canvas[top : top + h, left : left + w] = picture.transpose(1, 2, 0)
    return canvas if channels == 3 else canvas[..., 0]


def _shrink(x: Tensor) -> Tensor:
    """Average down by the smallest whole factor that makes the longer side fit."""
    factor = math.ceil(max(x.shape[-2:]) / LONGEST_SIDE)
    return F.avg_pool2d(x, factor, ceil_mode=True, count_include_pad=False) if factor > 1 else x
