"""A network of a few thousand weights with all the parts of the real ones: steps of milliseconds."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymat.config.sections import OptimConfig
from raymat.distributed.world import World
from raymat.model.init import initialise
from raymat.model.matting import MattingBase, SeededDropout
from raymat.model.ops import resize
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim.forward import ForwardPass

OUT_CHANNELS = 37


class SmallMatting(MattingBase):
    """As MattingBase, at half the resolution."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.backbone = _Encoder()
        self.aspp = nn.Sequential(  # type: ignore[assignment]
            nn.Conv2d(16, 24, 3, padding=1, bias=False),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            SeededDropout(0.5),
        )
        self.decoder = _Decoder()  # type: ignore[assignment]


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 16, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(self.bn(self.conv(pictures))), pictures


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv4 = nn.Conv2d(24 + 6, OUT_CHANNELS, 3, padding=1)

    def forward(self, coarse: Tensor, pictures: Tensor) -> Tensor:
        found: Tensor = self.conv4(
            torch.cat([resize(coarse, pictures.shape[2:]), pictures.to(coarse.dtype)], dim=1)
        )
        return found


def build_small(stage: Any, config: Any, seed: int) -> MattingBase:
    """Like `raymat.model.matting.build`."""
    network = SmallMatting()
    initialise(network, seed)
    return network


def new_step(precision: Any = "fp64", **options: Any) -> TrainStep:
    """A step of base at 32 pixels, in one worker."""
    torch.set_num_threads(1)
    return TrainStep(
        build_small("base", None, 0),
        ForwardPass(
            stage="base", precision=precision, seed=0, resolution=32, device=torch.device("cpu")
        ),
        World(),
        OptimConfig(**options),
    )
