"""Matting networks: MattingBase at one resolution, MattingRefine coarse to fine.

Lin et al., "Real-Time High-Resolution Background Matting", CVPR 2021. Parameters are named and
shaped as in the published weights, so that those load here and these load in the published
inference code.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymat.config.sections import PARTS, ModelConfig, Stage
from raymat.errors import ConfigError
from raymat.model.aspp import ASPP
from raymat.model.decoder import Decoder
from raymat.model.dropout import SeededDropout, set_dropout_seeds
from raymat.model.init import initialise
from raymat.model.mobilenetv2 import MobileNetV2Encoder
from raymat.model.ops import resize
from raymat.model.refiner import Refiner
from raymat.model.resnet import ResNetEncoder

__all__ = [
    "BACKBONES",
    "PARTS",
    "MattingBase",
    "MattingRefine",
    "SeededDropout",
    "build",
    "construct",
    "set_dropout_seeds",
]

BACKBONES = ("resnet50", "resnet101", "mobilenetv2")

_PICTURES = 6
"""Channels of source and background together."""


class MattingBase(nn.Module):
    """Network that predicts alpha, foreground and error of a picture, given a picture of its background."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ConfigError(f"backbone must be one of {', '.join(BACKBONES)}, got {backbone!r}")
        self.backbone: nn.Module
        if backbone == "mobilenetv2":
            self.backbone = MobileNetV2Encoder(_PICTURES)
            self.aspp = ASPP(320)
            self.decoder = Decoder(256, (32, 24, 16, _PICTURES))
        else:
            self.backbone = ResNetEncoder(backbone, _PICTURES)
            self.aspp = ASPP(2048)
            self.decoder = Decoder(256, (512, 256, 64, _PICTURES))

    def forward(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, ...]:
        """Predict at the resolution of the input.

        src: (n, 3, H, W) picture with the subject, RGB in 0..1. bgr: the same without the subject.
        H and W are multiples of 4 (ConfigError otherwise); n may be 0.

        Returns (pha, fgr, err, hid):
        pha (n, 1, H, W) alpha in 0..1; fgr (n, 3, H, W) foreground, RGB in 0..1;
        err (n, 1, H, W) predicted error of pha in 0..1;
        hid (n, 32, H, W) hidden features, at least 0.
        """
        check_pictures(src, bgr)
        pha, residual, err, hid = self.coarse(src, bgr)
        return pha, (residual + src).clamp(0, 1), err, hid

    def coarse(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict as `forward`, for any size; the foreground is a residual, src not yet added."""
        x, *finer = self.backbone(torch.cat([src, bgr], dim=1))
        x = self.decoder(self.aspp(x), *finer)
        return x[:, 0:1].clamp(0, 1), x[:, 1:4], x[:, 4:5].clamp(0, 1), F.relu(x[:, 5:])


class MattingRefine(MattingBase):
    """Network of MattingBase on the downsampled picture and the refiner at full resolution where it errs."""

    def __init__(
        self,
        backbone: str,
        backbone_scale: float = 1 / 4,
        refine_mode: str = "sampling",
        refine_sample_pixels: int = 80_000,
        refine_threshold: float = 0.1,
        refine_kernel_size: int = 3,
        refine_prevent_oversampling: bool = True,
    ) -> None:
        """Build the network: `backbone_scale` in (0, 1/2], the others as in `Refiner`. Raises ConfigError if out of range."""
        super().__init__(backbone)
        if not 0 < backbone_scale <= 1 / 2:
            raise ConfigError(f"backbone_scale must be in (0, 0.5], got {backbone_scale}")
        self.backbone_scale = backbone_scale
        self.refiner = Refiner(
            refine_mode,
            refine_sample_pixels,
            refine_threshold,
            refine_kernel_size,
            refine_prevent_oversampling,
        )

    def forward(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, ...]:
        """Predict coarsely, and refine where the prediction errs.

        src: (n, 3, H, W) picture with the subject, RGB in 0..1. bgr: the same without the subject.
        H and W are multiples of 4 (ConfigError otherwise); n may be 0. h, w are H, W times
        backbone_scale, rounded down.

        Returns (pha, fgr, pha_sm, fgr_sm, err_sm, ref_sm):
        pha (n, 1, H, W) alpha in 0..1; fgr (n, 3, H, W) foreground, RGB in 0..1;
        pha_sm (n, 1, h, w), fgr_sm (n, 3, h, w) the same, coarse;
        err_sm (n, 1, h, w) predicted error of pha_sm in 0..1;
        ref_sm (n, 1, H/4, W/4) 1 where a patch of 4x4 pixels was refined, else 0.
        """
        check_pictures(src, bgr)
        size = coarse_size(src.shape[2], src.shape[3], self.backbone_scale)
        src_sm, bgr_sm = resize(src, size), resize(bgr, size)
        pha_sm, residual_sm, err_sm, hid_sm = self.coarse(src_sm, bgr_sm)
        pha, residual, ref_sm = self.refiner(src, bgr, pha_sm, residual_sm, err_sm, hid_sm)
        fgr = (residual + src).clamp(0, 1)
        fgr_sm = (residual_sm + src_sm).clamp(0, 1)
        return pha.clamp(0, 1), fgr, pha_sm, fgr_sm, err_sm, ref_sm


def check_pictures(src: Tensor, bgr: Tensor) -> None:
    """Raise ConfigError unless src and bgr are (n, 3, H, W), equal, H and W positive multiples of 4."""
    if src.shape != bgr.shape or src.dim() != 4 or src.shape[1] != 3:
        raise ConfigError(
            "src and bgr must have the same shape (n, 3, height, width), "
            f"got {tuple(src.shape)} and {tuple(bgr.shape)}"
        )
    height, width = src.shape[2:]
    if height % 4 or width % 4 or not height or not width:
        raise ConfigError(
            f"height and width must be multiples of 4, got {height} x {width}: "
            f"crop or pad to {_multiple(height)} x {_multiple(width)}"
        )


def _multiple(length: int) -> int:
    """Return the nearest positive multiple of 4."""
    return max(4, (length + 2) // 4 * 4)


def coarse_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Return the size at which the base network sees a picture, rounded down. Raises ConfigError if that is 0."""
    size = (math.floor(height * scale), math.floor(width * scale))
    if min(size) < 1:
        raise ConfigError(
            f"a picture of {height} x {width} has nothing left at backbone_scale {scale}: "
            "use a larger picture or scale"
        )
    return size


def build(stage: Stage, config: ModelConfig, seed: int) -> MattingBase:
    """Build a new network on the CPU, in training mode, float32.

    Every tensor is drawn from (seed, its name) alone: the same for equal arguments, and a base
    network and a refine network of one seed agree where they have the same tensors. No global
    generator is read or moved.
    """
    with torch.device("meta"):
        model = construct(stage, config)
    # Not by `to_empty`: of tensors on meta it imports torch's symbolic shapes, and SymPy with them, for most of a second.
    empty = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in model.state_dict().items()}
    model.load_state_dict(empty, assign=True)
    initialise(model, seed)
    return model


def construct(stage: Stage, config: ModelConfig) -> MattingBase:
    """Construct a network whose tensors are still to be filled: `build` does both."""
    if stage == "base":
        return MattingBase(config.backbone)
    if stage == "refine":
        return MattingRefine(
            config.backbone,
            config.backbone_scale,
            config.refine_mode,
            config.refine_sample_pixels,
            config.refine_threshold,
            config.refine_kernel_size,
        )
    raise ConfigError(f"stage must be base or refine, got {stage!r}")
