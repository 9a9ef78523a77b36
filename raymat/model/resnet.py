"""ResNet-50 and ResNet-101 encoders at output stride 16.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride of a
bottleneck on its 3x3 convolution, and the last stage dilated instead of strided (Chen et al.,
"Rethinking Atrous Convolution", 2017).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LAYERS: dict[str, tuple[int, int, int, int]] = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
"""Bottlenecks in each of the four stages."""

EXPANSION = 4
"""Channels out of a bottleneck for each channel of its width."""


class Bottleneck(nn.Module):
    """Bottleneck block: 1x1, 3x3 and 1x1 convolutions beside a skip connection."""

    def __init__(self, channels: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * EXPANSION)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != width * EXPANSION:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, width * EXPANSION, 1, stride=stride, bias=False),
                nn.BatchNorm2d(width * EXPANSION),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to (n, 4 width, H/stride, W/stride)."""
        skip = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + skip)


class ResNetEncoder(nn.Module):
    """ResNet encoder: without pooling and classifier at its end."""

    def __init__(self, variant: str, in_channels: int) -> None:
        super().__init__()
        layers = LAYERS[variant]
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, layers[0])
        self.layer2 = _stage(256, 128, layers[1], stride=2)
        self.layer3 = _stage(512, 256, layers[2], stride=2)
        self.layer4 = _stage(1024, 512, layers[3], dilation=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Extract features of a picture, coarsest first.

        x: (n, in_channels, H, W). Returns (n, 2048, H/16, W/16), (n, 512, H/8, W/8), (n, 256, H/4,
        W/4), (n, 64, H/2, W/2) and x itself; sizes rounded up.
        """
        x1 = F.relu(self.bn1(self.conv1(x)))
        x2 = self.layer1(self.maxpool(x1))
        x3 = self.layer2(x2)
        x4 = self.layer4(self.layer3(x3))
        return x4, x3, x2, x1, x


def _stage(
    channels: int, width: int, count: int, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    # The first bottleneck of a dilated stage takes the place of a strided one and is not itself
    # dilated.
    blocks = [Bottleneck(channels, width, stride)]
    blocks += [Bottleneck(width * EXPANSION, width, dilation=dilation) for _ in range(count - 1)]
    return nn.Sequential(*blocks)
