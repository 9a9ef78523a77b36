"""Collectives between workers outside the training step: sums, broadcasts, and errors that all of them raise.

The caller initialises `torch.distributed` before it makes a Group of more than one worker. The constructor and every
method are collectives: all workers call them, equally often and in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from raymat.distributed.world import World
from raymat.errors import CheckpointError, RaymatError

T = TypeVar("T")


class Group:
    """The workers of one attempt."""

    def __init__(self, world: World, device: torch.device) -> None:
        self.world = world
        # These messages lie in host memory: over NCCL each of them would wait for the GPU's queue.
        nccl = world.size > 1 and dist.get_backend() == "nccl"
        self._group = dist.new_group(backend="gloo") if nccl else None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes what is written once."""
        return self.world.rank == 0

    def sums(self, values: Sequence[float | torch.Tensor]) -> list[float]:
        """Sum each number over the workers, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def largest(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each number over the workers, in float64."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def on_lead(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 alone; return its picklable result, or raise its RaymatError, on every worker.

        The error travels as a value: if rank 0 raised at once, the others would wait for its broadcast for ever.
        """
        if self.world.size == 1:
            return function()
        box: list[Any] = [None]
        if self.leads:
            try:
                box = [function()]
            except RaymatError as error:
                box = [error]
        dist.broadcast_object_list(box, src=0, group=self._group)
        if isinstance(box[0], RaymatError):
            raise box[0]
        result: T = box[0]
        return result

    def on_all(self, function: Callable[[], T]) -> T:
        """Call `function`, which is no collective, on every worker; if it raises a RaymatError on any, raise that on all.

        Of several errors the lowest rank's is raised, a damaged checkpoint only if there is nothing worse. A worker that
        raised alone would leave the others waiting in their next collective.
        """
        result: T | None = None
        mine: RaymatError | None = None
        try:
            result = function()
        except RaymatError as error:
            mine = error
        errors = [found for found in self.gather(mine) if found is not None]
        for found in sorted(errors, key=lambda e: isinstance(e, CheckpointError)):
            raise found
        return result  # type: ignore[return-value]

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's `value`, by rank."""
        if self.world.size == 1:
            return [value]
        found: list[Any] = [None] * self.world.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def _reduce(self, values: Sequence[float | torch.Tensor], operation: Any) -> list[float]:
        found = torch.stack([torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in values])
        if self.world.size > 1:
            dist.all_reduce(found, operation, group=self._group)
        return [float(value) for value in found.tolist()]

    def spread(self, tensor: torch.Tensor, source: int) -> None:
        """Fill the CPU tensor with that of rank `source`."""
        if self.world.size > 1:
            dist.broadcast(tensor, src=source, group=self._group)
