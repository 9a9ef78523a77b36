"""Batch of pictures for the networks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Composed(NamedTuple):
    """Batch for the networks: `src`, `bgr`, `fgr` (n, 3, h, w) RGB and `pha` (n, 1, h, w), floats in 0..1."""

    src: Tensor
    bgr: Tensor
    fgr: Tensor
    pha: Tensor


def empty_batch(
    pha: Tensor,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Composed:
    """Return a batch to be filled, on the device of `pha` (n, h, w) and of its size. `memory_format`: of src and bgr."""
    n, height, width = pha.shape
    formats = (memory_format, memory_format, torch.contiguous_format, torch.contiguous_format)
    src, bgr, fgr, alpha = (
        torch.empty((n, c, height, width), dtype=dtype, device=pha.device, memory_format=memory)
        for c, memory in zip((3, 3, 3, 1), formats, strict=True)
    )
    return Composed(src=src, bgr=bgr, fgr=fgr, pha=alpha)


def to_unit_(x: Tensor, pixels: Tensor) -> Tensor:
    """Write 0..255 of `pixels` into `x` as 0..1; returns it."""
    return torch.div(pixels, torch.tensor(255, dtype=x.dtype), out=x)
