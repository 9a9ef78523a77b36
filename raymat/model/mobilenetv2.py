"""MobileNetV2 encoder of width 1 at output stride 16.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, without its
last 1x1 block and classifier; where the original strides a fourth time, this one dilates.
"""

from __future__ import annotations

from torch import Tensor, nn

SETTINGS: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 1),
    (6, 32, 3, 2, 1),
    (6, 64, 4, 2, 1),
    (6, 96, 3, 1, 1),
    (6, 160, 3, 1, 2),
    (6, 320, 1, 1, 2),
)
"""Expansion, channels out, blocks, stride of the first, dilation (after features[14] only)."""

UNDILATED = 14
"""Index of the block that lost its stride; dilation begins after it."""

TAPS = (1, 3, 6, 17)
"""Indices of the blocks whose outputs are handed out: 16, 24, 32 and 320 channels."""


def _conv_norm_relu(
    channels: int, out: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Inverted residual block: 1x1 expansion, 3x3 depthwise, linear 1x1 projection; a skip if the shape stays."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = channels * expansion
        expand = [_conv_norm_relu(channels, hidden)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand,
            _conv_norm_relu(hidden, hidden, 3, stride, dilation, groups=hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.skips = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, out, H/stride, W/stride)."""
        return x + self.conv(x) if self.skips else self.conv(x)


class MobileNetV2Encoder(nn.Module):
    """MobileNetV2 encoder, from its first convolution to its 320 channels."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        features: list[nn.Module] = [_conv_norm_relu(in_channels, 32, 3, stride=2)]
        channels = 32
        for expansion, out, count, first_stride, later_dilation in SETTINGS:
            for block in range(count):
                stride = first_stride if block == 0 else 1
                dilation = later_dilation if len(features) > UNDILATED else 1
                features.append(InvertedResidual(channels, out, expansion, stride, dilation))
                channels = out
        self.features = nn.Sequential(*features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Extract features of a picture, coarsest first.

        x: (n, in_channels, H, W). Returns (n, 320, H/16, W/16), (n, 32, H/8, W/8), (n, 24, H/4,
        W/4), (n, 16, H/2, W/2) and x itself; sizes rounded up.
        """
        taken = []
        y = x
        for index, feature in enumerate(self.features):
            y = feature(y)
            if index in TAPS:
                taken.append(y)
        x1, x2, x3, x4 = taken
        return x4, x3, x2, x1, x
