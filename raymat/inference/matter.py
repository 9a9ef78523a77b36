"""The network on pictures of any size: padded to what it takes, computed, and cut back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raymat.config.sections import Precision
from raymat.data.decode import Pixels
from raymat.errors import ConfigError, WeightsError
from raymat.inference.shots import Shot
from raymat.model.matting import MattingBase, MattingRefine
from raymat.model.ops import resize
from raymat.train.optim.forward import place
from raymat.train.optim.mixed_precision import autocast

_MULTIPLE = 4


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the network says of one shot, on its device, in the shot's size, 0..1."""

    pha: Tensor
    """(1, h, w) alpha."""
    fgr: Tensor
    """(3, h, w) foreground, RGB."""
    err: Tensor
    """(1, h, w) predicted error of the coarse alpha."""
    ref: Tensor | None
    """(1, h, w) 1 where a patch was refined, else 0; None of a base network."""


class Matter:
    """Network that mattes shots, in evaluation mode on a device."""

    def __init__(self, network: MattingBase, device: torch.device, precision: Precision) -> None:
        self._network = place(network.eval(), device, precision, device.type == "cuda")
        self._device = device
        self._precision = precision

    @property
    def refines(self) -> bool:
        """Whether there is a map of refined patches."""
        return isinstance(self._network, MattingRefine)

    @torch.inference_mode()
    def __call__(self, shots: Sequence[Shot]) -> list[Prediction]:
        """Predict for shots of one size.

        Raises:
            ConfigError: a picture is too small for the network's scale, or the device's memory for the batch.
            WeightsError: the network gives numbers that are not finite.
        """
        height, width = shots[0].size
        src, bgr = (
            self._padded([getattr(shot, side) for shot in shots])
            for side in ("source", "background")
        )
        try:
            with autocast(self._precision, self._device):
                outputs = self._network(src, bgr)
            pha, fgr, err, ref = self._whole(outputs, src.shape[2:])
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"{len(shots)} pictures of {width} x {height} need more memory than the device has: "
                "lower --batch-size, use --precision fp16, or --device cpu"
            ) from error
        if not bool((pha.sum() + fgr.sum()).isfinite()):
            raise WeightsError(
                f"{shots[0].shown}: the network gives numbers that are not finite: use --precision fp32, "
                "or an earlier checkpoint"
            )
        cut = [None if x is None else x[..., :height, :width] for x in (pha, fgr, err, ref)]
        return [
            Prediction(*(None if x is None else x[i] for x in cut))  # type: ignore[arg-type]
            for i in range(len(shots))
        ]

    def _padded(self, pictures: Sequence[Pixels]) -> Tensor:
        """Return pictures as (n, 3, H, W) in 0..1, with the last rows and columns repeated up to multiples of 4."""
        stacked = torch.from_numpy(np.stack(pictures)).to(self._device).permute(0, 3, 1, 2)
        dtype = torch.float64 if self._precision == "fp64" else torch.float32
        x = stacked.to(dtype).div(255)
        x = F.pad(x, (0, -x.shape[3] % _MULTIPLE, 0, -x.shape[2] % _MULTIPLE), mode="replicate")
        last = self._device.type == "cuda"
        return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def _whole(
        self, outputs: tuple[Tensor, ...], size: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return alpha, foreground, error and refined patches, all in the padded size and at least float32."""
        wide = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in outputs]
        if not self.refines:
            return wide[0], wide[1], wide[2], None
        ref = F.interpolate(wide[5], scale_factor=float(_MULTIPLE), mode="nearest")
        return wide[0], wide[1], resize(wide[4], size), ref
