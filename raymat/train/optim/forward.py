"""What training and evaluation share: from a micro-batch to what a network is given, and a stage's loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymat.config.sections import Stage
from raymat.data.batch import MicroBatch
from raymat.data.composite import Augmentation, Composed, composite
from raymat.train.optim.losses import base_loss, refine_loss

Loss = Callable[[tuple[Tensor, ...], Composed], Tensor]
"""From a network's outputs and the truth to the mean over the examples ()."""


def compose(
    batch: MicroBatch,
    *,
    seed: int,
    resolution: int,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool,
) -> Composed:
    """The pictures of `batch` on `device`; `seed` and `resolution` are the run's."""
    fgr, pha, bgr = (_to_device(array, device) for array in (batch.fgr, batch.pha, batch.bgr))
    augmentation = Augmentation(seed, batch.numbers, resolution) if batch.train else None
    composed = composite(fgr, pha, bgr, augmentation, dtype)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    src, bgr = (x.contiguous(memory_format=memory) for x in (composed.src, composed.bgr))
    return composed._replace(src=src, bgr=bgr)


def loss_of(stage: Stage) -> Loss:
    """The stage's loss."""
    return _base if stage == "base" else _refine


def _base(outputs: tuple[Tensor, ...], truth: Composed) -> Tensor:
    pha, fgr, err, _ = outputs
    return base_loss(pha, fgr, err, truth.pha, truth.fgr)


def _refine(outputs: tuple[Tensor, ...], truth: Composed) -> Tensor:
    pha, fgr, pha_sm, fgr_sm, err_sm, _ = outputs
    return refine_loss(pha, fgr, pha_sm, fgr_sm, err_sm, truth.pha, truth.fgr)


def _to_device(array: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Pixels as a tensor on `device`; the array may be read-only. Copies to a GPU go through pinned memory, unwaited for."""
    pinned = torch.empty(array.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)
