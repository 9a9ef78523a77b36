"""The forward pass that training and evaluation share: from a micro-batch to a network's outputs and a stage's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raymat.config.run import RunConfig
from raymat.config.sections import RECIPES, BatchNorm, Precision, Recipe, Stage
from raymat.data.batch import MicroBatch
from raymat.data.composite import Augmentation, Composed, Way, composite, usual_way
from raymat.distributed.batchnorm_kernels import Kernels, kernels_on
from raymat.train.optim.losses import base_loss, refine_loss
from raymat.train.optim.mixed_precision import autocast, parameter_dtype

Loss = Callable[[tuple[Tensor, ...], Composed], Tensor]
"""From a network's outputs and the truth to the mean over the examples ()."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """How a run computes its network: where, in which precision and memory format, and by which loss."""

    stage: Stage
    precision: Precision
    seed: int
    """The run's, by which examples are augmented."""
    resolution: int
    """The run's, in pixels."""
    device: torch.device
    channels_last: bool = False
    """Whether weights and pictures lie in memory with the channels last."""
    recipe: Recipe = RECIPES[-1]
    """The run's, by which examples are augmented."""
    batch_norm: BatchNorm = "fused"
    """The run's: how several workers on GPUs compute it."""

    @classmethod
    def of(
        cls, config: RunConfig, device: torch.device, channels_last: bool | None = None
    ) -> ForwardPass:
        """Return that of a run whose precision, recipe and batch norm are settled. `channels_last`: default: on cuda."""
        assert config.optim.precision is not None
        assert config.data.recipe is not None
        assert config.optim.batch_norm is not None
        return cls(
            stage=config.stage,
            precision=config.optim.precision,
            seed=config.data.seed,
            resolution=config.data.resolution,
            device=device,
            channels_last=device.type == "cuda" if channels_last is None else channels_last,
            recipe=config.data.recipe,
            batch_norm=config.optim.batch_norm,
        )

    def place(self, network: Network) -> Network:
        """Move `network` to the device, its precision and memory format; returns it."""
        return place(network, self.device, self.precision, self.channels_last)

    @property
    def kernels(self) -> Kernels:
        """What computes batch norm where there are several workers."""
        return kernels_on(self.device.type, self.batch_norm == "fused")

    @property
    def way(self) -> Way:
        """How training batches are composed."""
        return usual_way(self.device, self.recipe, parameter_dtype(self.precision))

    def compose(self, batch: MicroBatch, way: Way | None = None) -> Composed:
        """Return the pictures of `batch` on the device. `way`: of training batches; default: the run's."""
        fgr, pha, bgr = (
            _to_device(array, self.device) for array in (batch.fgr, batch.pha, batch.bgr)
        )
        key = Augmentation(self.seed, batch.numbers, self.resolution, self.recipe)
        dtype = parameter_dtype(self.precision)
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        return composite(fgr, pha, bgr, key if batch.train else None, dtype, way, memory)

    def __call__(self, network: nn.Module, composed: Composed) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the mean loss over the examples () and the outputs of a network that `place` has moved."""
        with autocast(self.precision, self.device):
            outputs = network(composed.src, composed.bgr)
        return loss_of(self.stage)(outputs, composed), outputs


def place(
    network: Network, device: torch.device, precision: Precision, channels_last: bool
) -> Network:
    """Move `network` to `device`, in the dtype that `precision` keeps weights in; returns it."""
    network.to(device=device, dtype=parameter_dtype(precision))
    memory = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=memory)  # type: ignore[call-overload]
    return network


def loss_of(stage: Stage) -> Loss:
    """Return the stage's loss."""
    return _base if stage == "base" else _refine


def _base(outputs: tuple[Tensor, ...], truth: Composed) -> Tensor:
    pha, fgr, err, _ = outputs
    return base_loss(pha, fgr, err, truth.pha, truth.fgr)


def _refine(outputs: tuple[Tensor, ...], truth: Composed) -> Tensor:
    pha, fgr, pha_sm, fgr_sm, err_sm, _ = outputs
    return refine_loss(pha, fgr, pha_sm, fgr_sm, err_sm, truth.pha, truth.fgr)


def _to_device(array: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Copy pixels to a tensor on `device`; the array may be read-only. Copies to a GPU are pinned and asynchronous."""
    pinned = torch.empty(array.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.copyto(pinned.numpy(), array)
    return pinned.to(device, non_blocking=True)
