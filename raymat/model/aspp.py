"""Atrous spatial pyramid pooling.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raymat.model.dropout import SeededDropout
from raymat.model.ops import memory_format_of


def _conv_norm_relu(channels: int, out: int, kernel: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    return [
        nn.Conv2d(channels, out, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    ]


class GlobalMean(nn.Module):
    """Mean over the picture: (n, C, H, W) -> (n, C, 1, 1).

    A plain mean, since adaptive average pooling has no deterministic backward on CUDA.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class PooledBranch(nn.Sequential):
    """Branch that convolves the picture's mean and spreads it over the whole picture."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(GlobalMean(), *_conv_norm_relu(channels, out, 1))

    def forward(self, input: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, out, H, W), constant over H and W."""
        # Resizing one pixel bilinearly only repeats it. As a view it would make the concatenation
        # with the other branches fall back from channels-last to the plain memory format.
        spread = super().forward(input).expand(-1, -1, *input.shape[2:])
        return spread.contiguous(memory_format=memory_format_of(input))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1, a dilated 3x3 for each rate and a pooled branch, projected together."""

    def __init__(self, channels: int, out: int = 256, rates: Sequence[int] = (3, 6, 9)) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*_conv_norm_relu(channels, out, 1)),
                *(nn.Sequential(*_conv_norm_relu(channels, out, 3, rate)) for rate in rates),
                PooledBranch(channels, out),
            ]
        )
        self.project = nn.Sequential(
            *_conv_norm_relu(len(self.convs) * out, out, 1), SeededDropout(0.5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, H, W) to (n, out, H, W), at least 0."""
        return self.project(torch.cat([branch(x) for branch in self.convs], dim=1))
