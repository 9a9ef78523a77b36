"""Decoder: from coarse features back to the size of the encoder's input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymat.model.ops import resize

OUT_CHANNELS = 1 + 3 + 1 + 32
"""Alpha, foreground residual, error, hidden features."""


class Decoder(nn.Module):
    """Decoder of four stages: upsample to the next finer feature, concatenate with it, convolve."""

    def __init__(self, channels: int, features: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels + features[0], 128, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(128)
        self.conv2 = nn.Conv2d(128 + features[1], 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64 + features[2], 48, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(48)
        self.conv4 = nn.Conv2d(48 + features[3], OUT_CHANNELS, 3, padding=1)

    def forward(self, x4: Tensor, x3: Tensor, x2: Tensor, x1: Tensor, x0: Tensor) -> Tensor:
        """Decode from coarse to fine.

        x4: (n, channels, H/16, W/16), from the ASPP. x3, x2, x1: the encoder's features at 1/8,
        1/4, 1/2.
        x0: (n, 6, H, W), the pictures. Returns (n, 37, H, W), unbounded.
        """
        x = F.relu(self.bn1(self.conv1(_join(x4, x3))))
        x = F.relu(self.bn2(self.conv2(_join(x, x2))))
        x = F.relu(self.bn3(self.conv3(_join(x, x1))))
        return self.conv4(_join(x, x0))


def _join(coarse: Tensor, fine: Tensor) -> Tensor:
    return torch.cat([resize(coarse, fine.shape[2:]), fine.to(coarse.dtype)], dim=1)
