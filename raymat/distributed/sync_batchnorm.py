"""Batch normalisation over the global batch, however it is spread over the workers.

torch's `SyncBatchNorm` refuses CPU tensors. This one runs wherever `torch.distributed` does, takes uneven and empty shares,
and computes what one process with the whole batch would, up to the order of summation.

Per-worker counts, means and deviations are gathered and combined in rank order. Sums and sums of squares would lose the
variance of a channel whose mean is large; and since each worker combines the same numbers in the same order, the running
statistics are the same on all of them, to the bit, and need no broadcast. A layer costs one collective each way; the
running statistics of all layers are updated together after a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from raymat.distributed.batchnorm_kernels import PLAIN, Kernels, Moments
from raymat.distributed.world import World
from raymat.errors import TrainingError

_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The first is torch's name for it from 2.13 on, where the second warns."""


class StatisticsGroup:
    """A process group for statistics alone: on that of the gradients each message would wait behind megabytes of them.

    Making one is a collective. Copies of a network share it.
    """

    def __init__(self) -> None:
        self.handle = dist.new_group()

    def __deepcopy__(self, memo: Any) -> StatisticsGroup:
        return self


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of all `workers`' examples together.

    Input and output (n, C, H, W); n may be 0 on some workers, which must call it all the same. With one worker, and in
    evaluation, it is `nn.BatchNorm2d`. Where the workers together hold a single value per channel, or none, as the pooled
    branch of ASPP does for a run's last example when that is a batch of its own, its variance is 0: the output is the bias,
    no gradient goes through, and the running statistics stay as they are. (torch refuses such a batch.)
    """

    workers: int = 1
    kernels: Kernels = PLAIN
    """What computes where there are more workers than one."""
    group: StatisticsGroup | None = None
    """What sends the statistics; None: the default group."""
    seen: _SeenList | None = None
    """Where passes are noted whose running statistics are updated later, those of all layers together; None: at once."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        if self.workers == 1:
            return self._alone(input)
        self._check_input_dim(input)
        over = _Over(self.workers, self.kernels, self.group and self.group.handle)
        output, *moments = _Normalise.apply(input, self.weight, self.bias, self.eps, over)
        seen = _Seen(self, Moments(*moments))
        if self.running_mean is None:
            pass
        elif self.seen is None:
            _update_running([seen])
        else:
            self.seen.append(seen)
        return output

    def _alone(self, input: Tensor) -> Tensor:
        if input.numel() <= input.shape[1]:
            return input * 0 + self.bias.view(1, -1, 1, 1)
        if self.seen is None:
            return super().forward(input)
        self.seen.append(_Seen(self))
        statistics = self.running_mean, self.running_var
        momentum = _one_momentum([self])
        return F.batch_norm(input, *statistics, self.weight, self.bias, True, momentum, self.eps)


class _Over(NamedTuple):
    """What a batch is spread over, and how its parts are computed and exchanged."""

    workers: int
    kernels: Kernels
    group: Any


class _Seen(NamedTuple):
    """A pass through a layer; without moments all but the count of its batches is up to date."""

    layer: GlobalBatchNorm2d
    moments: Moments | None = None


class _SeenList(list[_Seen]):
    """The passes that a network's RunningStatistics has still to note; a copy of the network has none and updates at once."""

    def __deepcopy__(self, memo: Any) -> None:
        return None


@torch.no_grad()
def _update_running(seen: Sequence[_Seen]) -> None:
    """Update the running statistics of different layers as `F.batch_norm` does, with the unbiased variance, by operations
    on all of them together. A batch of a single value changes nothing.
    """
    layers = [each.layer for each in seen]
    moments = [each.moments for each in seen if each.moments is not None]
    batches = _buffers(layers, "num_batches_tracked")
    if not moments:
        torch._foreach_add_(batches, 1)
        return
    counts = torch.stack([m.counts for m in moments]).sum(1)
    torch._foreach_add_(batches, list((counts > 1).to(batches[0].dtype).unbind()))
    sizes = [len(m.mean) for m in moments]
    count = torch.cat([c.expand(n) for c, n in zip(counts.double(), sizes, strict=True)])
    deviation = torch.cat([m.deviation for m in moments])
    variance = layers[0].kernels.variance(deviation, count, layers[0].eps)
    values = torch.stack((torch.cat([m.mean for m in moments]).double(), variance))
    statistics = _buffers(layers, "running_mean") + _buffers(layers, "running_var")
    running = torch.cat(statistics).view(2, -1)
    momentum = _one_momentum(layers)
    moved = running * (1 - momentum) + values.to(running.dtype) * momentum
    updated = torch.where(count > 1, moved, running).view(-1)
    torch._foreach_copy_(statistics, list(updated.split(2 * sizes)))


def _buffers(layers: Iterable[nn.Module], name: str) -> list[Tensor]:
    return [layer.get_buffer(name) for layer in layers]


def _one_momentum(layers: Iterable[nn.BatchNorm2d]) -> float:
    """Return the momentum of all `layers`. Raises TrainingError unless it is one, and their eps are one."""
    found = {(layer.momentum, layer.eps) for layer in layers}
    momentum = found.pop()[0] if len(found) == 1 else None
    if momentum is None:
        raise TrainingError("batch norms trained together need one momentum and one eps")
    return momentum


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and var over all workers; also its backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, over: _Over
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the output, like `x`, and the three tensors of the global batch's Moments."""
        workers, kernels, group = over
        message = kernels.message(x, eps)
        # Gathered, not summed: every worker combines the same numbers in rank order, and gets the same bits.
        gathered = message.new_empty(workers * len(message))
        _gather_into(gathered, message, group=group)
        moments, kept = kernels.combine(gathered.view(workers, -1), x, eps)
        ctx.save_for_backward(x, weight, *kept)
        ctx.eps, ctx.over = eps, over
        ctx.mark_non_differentiable(*moments)
        # Else autograd fills a tensor of zeros for each of the moments in every backward pass.
        ctx.set_materialize_grads(False)
        return kernels.normalise(x, weight, bias, kept, eps), *moments

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients: that of `x` needs two sums over all workers; those of weight and bias are this worker's."""
        x, weight, *kept = ctx.saved_tensors
        kernels = ctx.over.kernels
        sums, of_weight, of_bias, more = kernels.reduce(gradients[0], x, weight, kept, ctx.eps)
        dist.all_reduce(sums, group=ctx.over.group)
        of_x = kernels.spread(sums, x, weight, [*kept, *more], ctx.eps)
        return of_x, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None


def globalise(
    model: nn.Module,
    world: World | None = None,
    group: StatisticsGroup | None = None,
    kernels: Kernels = PLAIN,
) -> nn.Module:
    """Turn each `nn.BatchNorm2d` of `model` into a GlobalBatchNorm2d over `world`, in place; return `model`.

    `group` sends the statistics; None: the default group does. `kernels`: what the device will have.

    Modules keep their identity, so that parameters, buffers, state-dict keys and memory formats stay as they are.
    """
    size = (world or World()).size
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
        if isinstance(module, GlobalBatchNorm2d):
            module.workers, module.group, module.kernels = size, group, kernels
    return model


class RunningStatistics:
    """All running statistics of a network as flat tensors, one for each dtype, so that a step is undone with one copy each.

    The modules' buffers become views of the flat tensors: keys, shapes and loading stay as they were. After each training
    pass `update` must be called.
    """

    def __init__(self, model: nn.Module, fixed: Iterable[nn.Module] = ()) -> None:
        """`fixed`: modules that stay in evaluation mode. Their statistics never change, and are left out: a backward pass
        through them needs them as they were, and views of one tensor count as changed when any of them is.
        """
        self._flat: list[Tensor] = []
        self._seen = _SeenList()
        kept = {part for module in fixed for part in module.modules()}
        layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m not in kept]
        buffers = [(m, *named) for m in layers for named in m.named_buffers(recurse=False)]
        for layer in layers:
            if isinstance(layer, GlobalBatchNorm2d):
                layer.seen = self._seen
        for dtype in sorted({tensor.dtype for _, _, tensor in buffers}, key=str):
            self._flatten([entry for entry in buffers if entry[2].dtype == dtype])

    def _flatten(self, buffers: list[tuple[nn.Module, str, Tensor]]) -> None:
        flat = torch.cat([tensor.reshape(-1) for _, _, tensor in buffers])
        start = 0
        for module, name, tensor in buffers:
            setattr(module, name, flat[start : start + tensor.numel()].view(tensor.shape))
            start += tensor.numel()
        self._flat.append(flat)

    def update(self) -> None:
        """Bring them up to date after a pass through each layer of the network in training."""
        if self._seen:
            _update_running(self._seen)
        self._seen.clear()

    def save(self) -> list[Tensor]:
        """Return a copy of all of them, for `undo`. What a pass that failed has left is forgotten."""
        self._seen.clear()
        return [flat.clone() for flat in self._flat]

    def undo(self, saved: list[Tensor], where: Tensor) -> None:
        """Restore `saved` if the boolean tensor `where` () is true, without the host waiting to know."""
        for flat, old in zip(self._flat, saved, strict=True):
            flat.copy_(torch.where(where, old, flat))
