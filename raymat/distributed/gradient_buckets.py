"""Gradients in flat buffers of one fixed layout, summed over the workers while the backward pass is running.

Why not torch's DistributedDataParallel: after a process's first backward pass it regroups its buckets by the order in which
gradients came. From three workers on, the sums are then formed in another order than in the steps before, and a
restarted run is no longer equal to the bit. `find_unused_parameters` happens to prevent that, at the price of a walk through
the graph in every step and a warning from every worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20
"""A bucket is closed when it has reached this size; as in DDP."""
_ALIGN = 16
"""Elements to a multiple of which each gradient is aligned: kernels read aligned memory in wider pieces."""


@dataclass
class _Bucket:
    flat: Tensor
    members: list[nn.Parameter]
    views: list[Tensor]
    """The members' places in `flat`, laid out as the members are."""
    ready: int = 0
    sent: Any = None

    @property
    def complete(self) -> bool:
        return self.ready == len(self.members)

    def pack(self) -> None:
        """Add the gradients of a backward pass to those that are there, all of them in one go, and let go of them."""
        found = [
            (v, p.grad) for v, p in zip(self.views, self.members, strict=True) if p.grad is not None
        ]
        if found:
            torch._foreach_add_([view for view, _ in found], [grad for _, grad in found])
        self.show(None)

    def show(self, views: list[Tensor] | None) -> None:
        """Let the members' `.grad` be `views`, or nothing: what a backward pass finds, it adds to, one by one."""
        for parameter, view in zip(self.members, views or itertools.repeat(None), strict=False):
            parameter.grad = view


class GradientSum:
    """The gradients of `parameters` and of `aside`, summed over `workers`; their `.grad` are views of a few flat tensors.

    Before a step's backward passes call `clear`, before each of them `expect`, and after them `finish`. From `expect` to
    `finish` the `.grad` are autograd's own. With more than one worker all must run backward passes through the same
    operations, in the same order, whatever the size of their share.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], aside: nn.Parameter, workers: int
    ) -> None:
        self._workers = workers
        self._buckets: list[_Bucket] = []
        self._next, self._summing = 0, True
        *first, last = _drafts(parameters)
        for members in (*first, [*last, aside]):
            self._add(members)
        self._aside = _padded(aside)

    @property
    def flats(self) -> list[Tensor]:
        """The gradients of `parameters`, without `aside`, as one-dimensional tensors with zeros between them."""
        *first, last = (bucket.flat for bucket in self._buckets)
        return [*first, last[: -self._aside]]

    def clear(self) -> None:
        """Set all gradients to 0."""
        self._next = 0
        for bucket in self._buckets:
            bucket.ready, bucket.sent = 0, None
            bucket.flat.zero_()
            bucket.show(bucket.views)

    def expect(self, *, last: bool) -> None:
        """Announce a backward pass, whose gradients are added to those that are there. Only during the `last` one of a
        step the buckets are summed over the workers."""
        self._summing = last
        for bucket in self._buckets:
            # Either the views, which need nothing, or what parameters that the pass before did not all use have left.
            if bucket.ready:
                bucket.pack()
            bucket.ready = 0
            bucket.show(None)

    def finish(self) -> None:
        """Wait until all sums are there; on a GPU the host does not wait. Parameters that were not used add 0."""
        for bucket in self._buckets[self._next :]:
            if not bucket.complete:
                bucket.pack()
        if self._workers > 1:
            while self._next < len(self._buckets):
                self._send()
            for bucket in self._buckets:
                bucket.sent.wait()
        for bucket in self._buckets:
            bucket.show(bucket.views)

    def _add(self, members: list[nn.Parameter]) -> None:
        size = sum(_padded(p) for p in members)
        flat = torch.zeros(size, dtype=members[0].dtype, device=members[0].device)
        bucket, start = _Bucket(flat, members, []), 0
        for parameter in members:
            # Laid out as the parameter is: the optimiser's fused kernels walk through both in parallel.
            bucket.views.append(flat.as_strided(parameter.shape, parameter.stride(), start))
            start += _padded(parameter)
            parameter.register_post_accumulate_grad_hook(lambda _, b=bucket: self._note(b))
        bucket.show(bucket.views)
        self._buckets.append(bucket)

    def _note(self, bucket: _Bucket) -> None:
        """Note that a gradient of `bucket` is complete, and send what can be sent.

        Buckets are sent in their order, not as they fill: all workers must start the same collectives in the same order.
        """
        bucket.ready += 1
        if not bucket.complete:
            return
        bucket.pack()
        if self._summing and self._workers > 1:
            while self._next < len(self._buckets) and self._buckets[self._next].complete:
                self._send()

    def _send(self) -> None:
        bucket = self._buckets[self._next]
        bucket.sent = dist.all_reduce(bucket.flat, async_op=True)
        self._next += 1


def _padded(parameter: Tensor) -> int:
    """Return how many elements a parameter takes up."""
    return -(-parameter.numel() // _ALIGN) * _ALIGN


def _drafts(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Assign parameters to buckets, the last first: about the order in which a backward pass reaches them."""
    drafts: list[list[nn.Parameter]] = [[]]
    size = 0
    for parameter in reversed(list(parameters)):
        if size >= BUCKET_BYTES:
            drafts.append([])
            size = 0
        drafts[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return drafts
