"""Batch normalisation over the global batch, however it is spread over the workers.

torch's `SyncBatchNorm` refuses CPU tensors. This one runs wherever `torch.distributed` does, takes uneven and empty shares,
and computes what one process with the whole batch would, up to the order of summation.

Per-worker (count, mean, sum of squared deviations) are gathered and combined in rank order in float64 (Chan, Golub and
LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979). Sums and sums of squares would
lose the variance of a channel whose mean is large; and since each worker combines the same numbers in the same order, the
running statistics are the same on all of them, to the bit, and need no broadcast.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from raymat.distributed.world import World
from raymat.errors import TrainingError


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all `workers`' examples together.

    Input and output (n, C, H, W); n may be 0 on some workers, which must call it all the same. With one worker, and in
    evaluation, it is `nn.BatchNorm2d`. Where the workers together hold a single value per channel, or none, as the pooled
    branch of ASPP does for a run's last example when that is a batch of its own, its variance is 0: the output is the bias,
    no gradient goes through, and the running statistics stay as they are. (torch refuses such a batch.)
    """

    workers: int = 1

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if self.workers == 1:
            if input.numel() <= input.shape[1]:
                return input * 0 + _channels(self.bias)
            return super().forward(input)
        self._check_input_dim(input)
        output, mean, m2, count = _Normalise.apply(
            input, self.weight, self.bias, self.eps, self.workers
        )
        self._update_running(mean, m2, count)
        return output

    @torch.no_grad()
    def _update_running(self, mean: Tensor, m2: Tensor, count: Tensor) -> None:
        """Update the running statistics as `F.batch_norm` does, with the unbiased variance. All arguments in float64."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_((count > 1).to(self.num_batches_tracked.dtype))
        if self.momentum is None:
            raise TrainingError("batch norm over several workers needs a momentum, got None")
        variance = m2 / (count - 1).clamp(min=1)
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            moved = running * (1 - self.momentum) + value.to(running.dtype) * self.momentum
            running.copy_(torch.where(count > 1, moved, running))


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and var over all workers; also its backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, workers: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the output, like `x`, then mean (C,), summed squared deviations (C,) and count (), all float64."""
        mean, m2, count = _global_moments(x, workers)
        dtype = _statistics_dtype(x)
        mean_, var_ = mean.to(dtype), (m2 / count).to(dtype)
        ctx.save_for_backward(x, weight, mean_, var_, count.to(dtype))
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, m2, count)
        return F.batch_norm(x, mean_, var_, weight, bias, False, 0.0, eps), mean, m2, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients: that of `x` needs two sums over all workers; those of weight and bias are this worker's."""
        x, weight, mean, var, count = ctx.saved_tensors
        dtype = mean.dtype
        wide, grad_y = x.to(dtype), gradients[0].to(dtype)
        grad_x, grad_weight, grad_bias = _constant_backward(
            grad_y, wide, weight.to(dtype), mean, var, ctx.eps
        )
        sums = torch.stack((grad_weight, grad_bias))
        dist.all_reduce(sums)
        # What flows through the mean and the variance.
        inverse = torch.rsqrt(var + ctx.eps)
        scale = weight.to(dtype) * inverse / count
        slope, offset = _channels(scale * inverse * sums[0]), _channels(scale * sums[1])
        grad_x = grad_x.sub_(torch.addcmul(offset, wide - _channels(mean), slope))
        return (
            grad_x.to(x.dtype),
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
            None,
            None,
        )


def _constant_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias as if mean and variance were constants, in one pass over the pixels."""
    if not x.numel():  # the kernel divides by the count
        return torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    kernel = torch.ops.aten.native_batch_norm_backward
    grad_x, grad_weight, grad_bias = kernel(
        grad_y, x, weight, mean, var, None, None, False, eps, [True, True, True]
    )
    return grad_x, grad_weight, grad_bias


def _channels(values: Tensor) -> Tensor:
    """Reshape (C,) to broadcast against (n, C, H, W)."""
    return values.view(1, -1, 1, 1)


def _statistics_dtype(x: Tensor) -> torch.dtype:
    """Return float64 for float64, float32 for all others: half precision cannot hold a sum."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _global_moments(x: Tensor, workers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,), summed squared deviations (C,) and count () over all workers, float64, the same bits on each.

    The count is at least 1, so that nothing divides by 0.
    """
    count = x.numel() // x.shape[1]
    own = torch.zeros(3, x.shape[1], dtype=torch.float64, device=x.device)
    if count:
        mean, var = torch.batch_norm_update_stats(x.to(_statistics_dtype(x)), None, None, 0.0)
        own[0], own[1], own[2] = mean, var * count, float(count)
    # Gathered, not summed: every worker adds up the same numbers in rank order, and gets the same bits.
    gathered = [torch.empty_like(own) for _ in range(workers)]
    dist.all_gather(gathered, own)
    means, m2s, counts = torch.stack(gathered).unbind(1)
    total = counts[:, 0].sum().clamp(min=1)
    mean = (means * counts).sum(0) / total
    return mean, (m2s + counts * (means - mean).square()).sum(0), total


def globalise(model: nn.Module, world: World | None = None) -> nn.Module:
    """Turn each `nn.BatchNorm2d` of `model` into a GlobalBatchNorm2d over `world`, in place; return `model`.

    Modules keep their identity, so that parameters, buffers, state-dict keys and memory formats stay as they are.
    """
    size = (world or World()).size
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
        if isinstance(module, GlobalBatchNorm2d):
            module.workers = size
    return model


class RunningStatistics:
    """All running statistics of a network as flat tensors, one for each dtype, so that a step is undone with one copy each.

    The modules' buffers become views of the flat tensors: keys, shapes and loading stay as they were.
    """

    def __init__(self, model: nn.Module, fixed: Iterable[nn.Module] = ()) -> None:
        """`fixed`: modules that stay in evaluation mode. Their statistics never change, and are left out: a backward pass
        through them needs them as they were, and views of one tensor count as changed when any of them is.
        """
        self._flat: list[Tensor] = []
        kept = {part for module in fixed for part in module.modules()}
        buffers = [
            (module, name, tensor)
            for module in model.modules()
            if isinstance(module, nn.BatchNorm2d) and module not in kept
            for name, tensor in module.named_buffers(recurse=False)
        ]
        for dtype in sorted({tensor.dtype for _, _, tensor in buffers}, key=str):
            self._flatten([entry for entry in buffers if entry[2].dtype == dtype])

    def _flatten(self, buffers: list[tuple[nn.Module, str, Tensor]]) -> None:
        flat = torch.cat([tensor.reshape(-1) for _, _, tensor in buffers])
        start = 0
        for module, name, tensor in buffers:
            setattr(module, name, flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()
        self._flat.append(flat)

    def save(self) -> list[Tensor]:
        """Return a copy of all of them, for `undo`."""
        return [flat.clone() for flat in self._flat]

    def undo(self, saved: list[Tensor], where: Tensor) -> None:
        """Restore `saved` if the boolean tensor `where` () is true, without the host waiting to know."""
        for flat, old in zip(self._flat, saved, strict=True):
            flat.copy_(torch.where(where, old, flat))
