"""The arithmetic of batch normalisation over workers, for any device and in the few fused kernels that CUDA has.

Both ways turn a worker's examples into a message, the gathered messages into a normalised output, and two sums over the
workers into gradients. A worker with no examples sends a message as well.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Moments(NamedTuple):
    """Statistics of the global batch: `mean` (C,), the deviation (C,) in the kernels' own measure, and counts (k,) to be
    added up."""

    mean: Tensor
    deviation: Tensor
    counts: Tensor


class Kernels(Protocol):
    """How a device computes its part. `x` and gradients are (n, C, H, W), `weight` and `bias` are (C,)."""

    def message(self, x: Tensor, eps: float) -> Tensor:
        """Return this worker's statistics as a flat tensor, of the same length and dtype on every worker."""

    def combine(self, gathered: Tensor, x: Tensor, eps: float) -> tuple[Moments, list[Tensor]]:
        """Return the statistics of all messages, (workers, length), with the same bits on every worker, and what else
        the other steps need."""

    def normalise(
        self, x: Tensor, weight: Tensor, bias: Tensor, kept: list[Tensor], eps: float
    ) -> Tensor:
        """Return (x - mean) / sqrt(variance + eps) * weight + bias."""

    def reduce(
        self, grad: Tensor, x: Tensor, weight: Tensor, kept: list[Tensor], eps: float
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return two sums to be added up over the workers, the gradients of weight and bias, and what `spread` needs."""

    def spread(
        self, sums: Tensor, x: Tensor, weight: Tensor, kept: list[Tensor], eps: float
    ) -> Tensor:
        """Return the gradient of x from the two sums over all workers; `kept` ends with what `reduce` returned."""

    def variance(self, deviation: Tensor, count: Tensor, eps: float) -> Tensor:
        """Return the unbiased variance, 0 of a single value, where the arguments are those of many layers together."""


class PlainKernels:
    """What every device can do. Per-worker moments are combined in rank order in float64 (Chan, Golub and LeVeque,
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979); the deviation is the sum of squared
    deviations. Runs on the CPU depend on each rounding in here.
    """

    def message(self, x: Tensor, eps: float) -> Tensor:
        dtype, count = _statistics_dtype(x), x.numel() // x.shape[1]
        own = torch.full((1,), float(count), dtype=torch.float64, device=x.device)
        if count:
            moments = torch.batch_norm_update_stats(x.to(dtype), None, None, 0.0)
        else:
            moments = (torch.zeros(x.shape[1], dtype=dtype, device=x.device),) * 2
        # As bytes: float32 cannot hold the count of a large batch.
        return torch.cat([part.view(torch.uint8) for part in (*moments, own)])

    def combine(self, gathered: Tensor, x: Tensor, eps: float) -> tuple[Moments, list[Tensor]]:
        dtype, counts = _statistics_dtype(x), gathered[:, -8:].view(torch.float64)
        means, variances = gathered[:, :-8].view(dtype).chunk(2, 1)
        m2s = variances * counts.to(dtype)
        count = counts.sum().clamp(min=1)  # nothing divides by 0
        mean = (means * counts).sum(0) / count
        m2 = (m2s + counts * (means - mean).square()).sum(0)
        return Moments(mean, m2, count.view(1)), [mean.to(dtype), (m2 / count).to(dtype), count]

    def normalise(
        self, x: Tensor, weight: Tensor, bias: Tensor, kept: list[Tensor], eps: float
    ) -> Tensor:
        mean, variance, _ = kept
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    def reduce(
        self, grad: Tensor, x: Tensor, weight: Tensor, kept: list[Tensor], eps: float
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """See `Kernels`; the sums are the gradients of weight and bias, and what is returned last is the gradient of x as
        if mean and variance were constants, all in one pass over the pixels.
        """
        mean, variance, _ = kept
        wide, grad, weight = x.to(mean.dtype), grad.to(mean.dtype), weight.to(mean.dtype)
        if x.numel():
            gradients = torch.ops.aten.native_batch_norm_backward(
                grad, wide, weight, mean, variance, None, None, False, eps, [True, True, True]
            )
        else:  # the kernel divides by the count
            gradients = (torch.empty_like(wide), torch.zeros_like(weight), torch.zeros_like(weight))
        constant, of_weight, of_bias = gradients
        return torch.stack((of_weight, of_bias)), of_weight, of_bias, [constant]

    def spread(
        self, sums: Tensor, x: Tensor, weight: Tensor, kept: list[Tensor], eps: float
    ) -> Tensor:
        """See `Kernels`: subtract what flows through the mean and the variance."""
        mean, variance, count, constant = kept
        inverse = torch.rsqrt(variance + eps)
        scale = weight.to(mean.dtype) * inverse / count.to(mean.dtype)
        slope, offset = _channels(scale * inverse * sums[0]), _channels(scale * sums[1])
        through = torch.addcmul(offset, x.to(mean.dtype) - _channels(mean), slope)
        return constant.sub_(through).to(x.dtype)

    def variance(self, deviation: Tensor, count: Tensor, eps: float) -> Tensor:
        return deviation / (count - 1).clamp(min=1)


class FusedKernels:
    """The kernels of torch's SyncBatchNorm, which exist for CUDA alone and read half precision as it is. The deviation is
    1 / sqrt(variance + eps).
    """

    NONE = 1e-30
    """Count of an empty share: 0 would divide by 0 where it comes first, and this changes no other worker's moments."""

    def message(self, x: Tensor, eps: float) -> Tensor:
        dtype, channels = _statistics_dtype(x), x.shape[1]
        count = float(x.numel() // channels) or self.NONE
        if x.numel():
            moments = torch.batch_norm_stats(x, eps)
        else:
            moments = (torch.ones(channels, dtype=dtype, device=x.device),) * 2
        return torch.cat([*moments, _constant(count, dtype, x.device)])

    def combine(self, gathered: Tensor, x: Tensor, eps: float) -> tuple[Moments, list[Tensor]]:
        (means, inverses), counts = gathered[:, :-1].chunk(2, 1), gathered[:, -1]
        # The kernel reads the type of the counts off its first argument, which may be narrower in x.
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            means, means, inverses, None, None, 0.0, eps, counts
        )
        whole = counts.to(torch.int32)
        return Moments(mean, inverse, whole), [mean, inverse, whole]

    def normalise(
        self, x: Tensor, weight: Tensor, bias: Tensor, kept: list[Tensor], eps: float
    ) -> Tensor:
        mean, inverse, _ = kept
        if not x.numel():
            return torch.empty_like(x)
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)

    def reduce(
        self, grad: Tensor, x: Tensor, weight: Tensor, kept: list[Tensor], eps: float
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        mean, inverse, _ = kept
        # The kernel walks through both side by side.
        last = x.is_contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
        if not x.numel():
            none = torch.zeros_like(mean)
            return torch.zeros_like(mean).repeat(2), none, none.clone(), [grad]
        sum_dy, sum_dy_xmu, of_weight, of_bias = torch.batch_norm_backward_reduce(
            grad, x, mean, inverse, weight, True, True, True
        )
        return torch.cat((sum_dy, sum_dy_xmu)), of_weight, of_bias, [grad]

    def spread(
        self, sums: Tensor, x: Tensor, weight: Tensor, kept: list[Tensor], eps: float
    ) -> Tensor:
        mean, inverse, counts, grad = kept
        if not x.numel():
            return torch.empty_like(x)
        sum_dy, sum_dy_xmu = sums.chunk(2)
        return torch.batch_norm_backward_elemt(
            grad, x, mean, inverse, weight, sum_dy, sum_dy_xmu, counts
        )

    def variance(self, deviation: Tensor, count: Tensor, eps: float) -> Tensor:
        biased = (deviation.double().pow(-2) - eps).clamp(min=0)
        return biased * count / (count - 1).clamp(min=1)


PLAIN: Kernels = PlainKernels()
FUSED: Kernels = FusedKernels()

FUSED_ON = {"cuda"}
"""Types of devices that have the fused ones."""


def kernels_on(device_type: str, fused: bool = True) -> Kernels:
    """Return the kernels of a type of device: the fused ones where it has them and they are wanted."""
    return FUSED if fused and device_type in FUSED_ON else PLAIN


@functools.lru_cache(maxsize=64)
def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `value` as (1,), made once for the layers of a step that see pictures of one size."""
    return torch.full((1,), value, dtype=dtype, device=device)


def _channels(values: Tensor) -> Tensor:
    """Reshape (C,) to broadcast against (n, C, H, W)."""
    return values.view(1, -1, 1, 1)


def _statistics_dtype(x: Tensor) -> torch.dtype:
    """Return float64 for float64, float32 for all others: half precision cannot hold a sum."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
