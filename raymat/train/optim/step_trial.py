"""A small fixed computation, whose digest tells whether two processes compute steps to the same bits."""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from raymat.config.sections import Precision
from raymat.train.optim.mixed_precision import autocast, parameter_dtype

_CPU = torch.device("cpu")


def step_trial(precision: Precision) -> str:
    """Compute forward and backward through what networks are made of, on the CPU; return the digest of the results.

    Takes some hundredths of a second. The inputs are made of integers, so that only what is tried can differ.
    """
    dtype = parameter_dtype(precision)
    pictures, first, second = (
        (_spread(*shape) / scale).to(dtype).requires_grad_()
        for shape, scale in (((4, 16, 24, 24), 1), ((32, 16, 3, 3), 12), ((8, 32, 1, 1), 6))
    )
    with autocast(precision, _CPU):
        hidden = F.conv2d(pictures, first, padding=1)
        hidden = F.conv2d(F.relu(F.batch_norm(hidden, None, None, training=True)), second)
        hidden = F.interpolate(hidden, scale_factor=2.0, mode="bilinear", align_corners=False)
        hidden = torch.sigmoid(hidden) @ _spread(48, 33).to(hidden.dtype)
    loss = hidden.to(dtype).exp().sqrt().mean()
    loss.backward()
    long_sum = _spread(100_003).to(dtype).sum()  # long enough to be shared by threads
    digest = hashlib.sha256()
    for found in (loss.detach(), pictures.grad, first.grad, second.grad, long_sum):
        assert found is not None
        digest.update(found.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _spread(*shape: int) -> Tensor:
    """Return numbers in [-1, 1), far from regular, in float64."""
    numbers = torch.arange(math.prod(shape), dtype=torch.int64) * 2_654_435_761 % 2**32
    return (numbers.double() / 2**31 - 1).reshape(shape)
