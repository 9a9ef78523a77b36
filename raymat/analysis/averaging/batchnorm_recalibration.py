"""Recomputes batch-norm statistics on training pictures, for weights that no training step has seen."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from raymat.distributed.sync_batchnorm import globalise
from raymat.errors import DataError
from raymat.model.matting import MattingBase


@torch.no_grad()
def recompute_statistics(network: MattingBase, pictures: Iterable[tuple[Tensor, Tensor]]) -> int:
    """Replace the running statistics of `network` by those of its own activations; returns the number of batches.

    `pictures`: (src, bgr) of each batch, as `network` takes them. Each statistic is the mean over the batches (Izmailov et
    al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018; torch's `swa_utils.update_bn`). Only
    batch norms are in training mode: dropout, which is off at inference, would widen the variances after it. Weights do
    not change, and the network is in eval mode afterwards.

    Raises:
        DataError: there is no batch.
    """
    globalise(network)  # also takes batches of a single value per channel
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    count = 0
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.train()
        for src, bgr in pictures:
            network(src, bgr)
            count += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        network.eval()
    if not count:
        raise DataError("batch-norm statistics need at least one example")
    return count
