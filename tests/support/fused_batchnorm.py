"""torch's five CUDA kernels of batch norm over workers as formulas, so that what calls them can be tried on other devices.

Written from ATen's native/cuda/Normalization.cuh: the order of arguments, what may be absent, and how moments are combined.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from raymat.distributed.batchnorm_kernels import FUSED_ON


def install(device: Literal["cpu", "meta"] = "cpu") -> Any:
    """Give this process's `device` the five kernels, and let batch norm use them; what is returned must be kept."""
    library = torch.library.Library("aten", "IMPL")
    for function in (
        batch_norm_stats,
        batch_norm_gather_stats_with_counts,
        batch_norm_elemt,
        batch_norm_backward_reduce,
        batch_norm_backward_elemt,
    ):
        library.impl(function.__name__, function, "CPU" if device == "cpu" else "Meta")
    FUSED_ON.add(device)
    return library


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    like: Tensor,
    means: Tensor,
    inverses: Tensor,
    running_mean: None,
    running_var: None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    assert counts.dtype == like.dtype == means.dtype, (
        "the kernel takes the counts' type from `like`"
    )
    mean, spread, n = torch.zeros_like(means[0]), torch.zeros_like(means[0]), means.new_zeros(())
    for m, inverse, count in zip(means, inverses, counts, strict=True):
        factor = 1 / (n + count)
        spread = spread + (1 / inverse**2 - eps) * count + (m - mean) ** 2 * n * count * factor
        mean = n * factor * mean + count * factor * m
        n = n + count
    return mean, (spread / n + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, eps: float
) -> Tensor:
    return (x - _wide(mean)) * _wide(inverse * weight) + _wide(bias)


def batch_norm_backward_reduce(
    grad: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor, *wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert wanted == (True, True, True)
    assert _steps(grad) == _steps(x)
    of_bias, through = grad.sum((0, 2, 3)), (grad * (x - _wide(mean))).sum((0, 2, 3))
    return of_bias, through, through * inverse, of_bias.clone()


def batch_norm_backward_elemt(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    counts: Tensor,
) -> Tensor:
    assert counts.dtype == torch.int32
    total = counts.sum()
    slope = _wide(inverse**2 * sum_dy_xmu / total)
    return (grad - _wide(sum_dy / total) - (x - _wide(mean)) * slope) * _wide(inverse * weight)


def _steps(x: Tensor) -> list[int]:
    """Return the strides that matter: along a side of 1 there is no step."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


def _wide(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
