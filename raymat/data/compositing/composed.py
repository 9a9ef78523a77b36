"""Batch of pictures for the networks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Composed(NamedTuple):
    """Batch for the networks: `src`, `bgr`, `fgr` (n, 3, h, w) RGB and `pha` (n, 1, h, w), contiguous floats in 0..1."""

    src: Tensor
    bgr: Tensor
    fgr: Tensor
    pha: Tensor


def empty_batch(pha: Tensor, dtype: torch.dtype) -> Composed:
    """Return a batch to be filled, on the device of `pha` (n, h, w) and of its size."""
    n, height, width = pha.shape
    src, bgr, fgr, alpha = (
        pha.new_empty((n, channels, height, width), dtype=dtype) for channels in (3, 3, 3, 1)
    )
    return Composed(src=src, bgr=bgr, fgr=fgr, pha=alpha)


def to_unit_(x: Tensor, pixels: Tensor) -> Tensor:
    """Write 0..255 of `pixels` into `x` as 0..1; returns it."""
    return torch.div(pixels, torch.tensor(255, dtype=x.dtype), out=x)
