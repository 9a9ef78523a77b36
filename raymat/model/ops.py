"""Tensor operations on pictures that keep precision and memory format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (n, C, H, W) bilinearly (corners not aligned) to (n, C, *size), in x's own precision.

    Autocast computes it in float32, and the next convolution would narrow it again. Narrowing it here saves half of
    the bytes that the concatenations, paddings and crops in between move.
    """
    size = (size[0], size[1])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False).to(x.dtype)


def doubled(x: Tensor) -> Tensor:
    """Upsample (n, C, H, W) to (n, C, 2 H, 2 W) by nearest neighbours, in x's own precision."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest").to(x.dtype)


def widened(x: Tensor) -> Tensor:
    """Return half precision as float32, any other precision as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def memory_format_of(x: Tensor) -> torch.memory_format:
    """Return channels_last if x (n, C, H, W) is stored so, else contiguous_format."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
