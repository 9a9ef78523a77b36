"""A trial of a device's own kernels for batch norm: what they make of made-up shares, beside torch's operations in float64.

A card, a driver and a version of torch that nobody has tried together may compute anything. The shares of the trial are uneven, one
is empty, and they lie in memory both ways; no worker has to answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raymat.distributed.batchnorm_kernels import PLAIN, Kernels
from raymat.errors import TrainingError, one_line

LARGEST_DIFFERENCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 2e-1,
}
"""By the pictures' type, some ten times its rounding, of values of which the largest are about 8."""

_EPS = 1e-5
_SHARES = (3, 0, 2)
_SIZES = ((24, 9, 7), (48, 64, 64))
"""Channels, height, width: one thread block and many."""


def require_right(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> None:
    """Try `kernels` on pictures of `dtype` on `device`. Takes milliseconds; the host waits for the device.

    Raises:
        TrainingError: they fail there, or compute something else.
    """
    try:
        off = largest_difference(kernels, device, dtype)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler's, a driver's
        raise TrainingError(
            f"{_named(device)}: the kernels of batch norm fail ({one_line(error)}): begin the run anew with --batch-norm plain, "
            "and please report the card and the version of torch"
        ) from error
    if not off <= LARGEST_DIFFERENCE[dtype]:  # NaN is not, either
        raise TrainingError(
            f"{_named(device)}: the kernels of batch norm are {off:.2g} off torch's operations: begin the run anew with "
            "--batch-norm plain, and please report the card and the version of torch"
        )


def largest_difference(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> float:
    """Return by how much a result of `kernels` differs at most, in outputs, gradients and statistics of about 1."""
    found = [
        _difference(kernels, device, dtype, size, layout)
        for size in _SIZES
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    return float(torch.stack(found).max())


def _difference(
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int, int],
    layout: torch.memory_format,
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    # Rounded first: what the type cannot hold is no fault of a kernel's.
    made = [torch.randn(n, *size, generator=generator).to(dtype) for n in (*_SHARES, *_SHARES)]
    weight, bias = (torch.linspace(low, 2, size[0]) for low in (0.5, -1))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    there = _passed(
        kernels,
        [part.to(device).contiguous(memory_format=layout) for part in made],
        weight.to(device, wide),
        bias.to(device, wide),
    )
    here = _passed(PLAIN, [part.double() for part in made], weight.double(), bias.double())
    return torch.stack(
        [(a.cpu().double() - b.double()).abs().max() for a, b in zip(there, here, strict=True)]
    ).max()


def _passed(kernels: Kernels, made: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Do what all workers do: `made` are their shares, and the gradients of what comes out."""
    shares, grads = made[: len(_SHARES)], made[len(_SHARES) :]
    gathered = torch.stack([kernels.message(x, _EPS) for x in shares])
    results, everything_kept, all_sums, of_parameters = [], [], [], []
    for x, grad in zip(shares, grads, strict=True):
        moments, kept = kernels.combine(gathered, x, _EPS)
        results.append(kernels.normalise(x, weight, bias, kept, _EPS))
        sums, of_weight, of_bias, more = kernels.reduce(grad, x, weight, kept, _EPS)
        everything_kept.append([*kept, *more])
        all_sums.append(sums)
        of_parameters.append(torch.stack((of_weight, of_bias)))
    sums = torch.stack(all_sums).sum(0)
    for x, kept in zip(shares, everything_kept, strict=True):
        results.append(kernels.spread(sums, x, weight, kept, _EPS))
    count = moments.counts.double().sum()
    gradients = torch.stack(of_parameters).sum(0) / count  # as of a mean: of about 1, too
    variance = kernels.variance(moments.deviation, count, _EPS)
    return [*(part for part in results if part.numel()), gradients, moments.mean, variance]


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
