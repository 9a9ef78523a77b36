"""Weight initialisation that depends on a seed and on the tensors' names alone."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.nn import init


def initialise(model: nn.Module, seed: int) -> None:
    """Set every parameter and buffer of `model` (on the CPU).

    Convolutions of the backbone: normal, deviation sqrt(2 / fan out) (He et al., 2015), as
    torchvision's ResNets and MobileNets; all others: torch's default for convolutions, uniform
    within 1 / sqrt(fan in), biases too. Batch norms: weight 1, bias 0, mean 0, variance 1. Alpha
    and error start at 0.5.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            _initialise_convolution(module, name, seed)
        elif isinstance(module, nn.BatchNorm2d):
            # Constants only; draws nothing.
            module.reset_parameters()
    _center_clamped(model)


# Channels that the networks clamp to 0..1: alpha and error of the decoder, alpha of the refiner.
_CLAMPED = {"decoder.conv4.bias": (0, 4), "refiner.conv4.bias": (0,)}


@torch.no_grad()
def _center_clamped(model: nn.Module) -> None:
    """Start clamped outputs in the middle of their range.

    A clamp has no gradient outside its range. From a bias near 0 the first steps push alpha below 0 on most pixels,
    where it stays: a network trained from scratch then predicts 0 everywhere.
    """
    for name, parameter in model.named_parameters():
        for channel in _CLAMPED.get(name, ()):
            parameter[channel] = 0.5


def generator_of(seed: int, name: str) -> torch.Generator:
    """Return the generator of one tensor, seeded by a hash, so that similar seeds and names are unrelated."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    # The CPU's generator (MT19937) takes 32 bits of its seed.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def _initialise_convolution(module: nn.Conv2d, name: str, seed: int) -> None:
    weight = generator_of(seed, f"{name}.weight")
    if name.startswith("backbone."):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=weight)
    else:
        init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=weight)
    if module.bias is not None:
        bound = 1 / math.sqrt(_fan_in(module.weight))
        init.uniform_(module.bias, -bound, bound, generator=generator_of(seed, f"{name}.bias"))


def _fan_in(weight: Tensor) -> int:
    return weight[0].numel()
