"""The few things that workers say to each other outside the training step.

`torch.distributed` is the caller's: it is initialised before a Group is made, if there is more than one worker. The
constructor and every method are called by all workers, equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from raymat.distributed.world import World
from raymat.errors import CheckpointError, RaymatError


class Group:
    """The workers of one attempt."""

    def __init__(self, world: World, device: torch.device) -> None:
        self.world = world
        # What is said here lies on the host: over NCCL each word would wait for the GPU's queue.
        nccl = world.size > 1 and dist.get_backend() == "nccl"
        self._group = dist.new_group(backend="gloo") if nccl else None

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes what is written once."""
        return self.world.rank == 0

    def sums(self, values: Sequence[float | torch.Tensor]) -> list[float]:
        """Each number summed over the workers, in float64."""
        own = [torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in values]
        total = torch.stack(own)
        if self.world.size > 1:
            dist.all_reduce(total, group=self._group)
        return [float(value) for value in total.tolist()]

    def from_lead(self, value: Any) -> Any:
        """Rank 0's `value`, on every worker; the others' is ignored."""
        if self.world.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every worker's `value`, by rank."""
        if self.world.size == 1:
            return [value]
        found: list[Any] = [None] * self.world.size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def spread(self, tensor: torch.Tensor, source: int) -> None:
        """Fill the CPU tensor with that of rank `source`."""
        if self.world.size > 1:
            dist.broadcast(tensor, src=source, group=self._group)

    def raise_together(self, error: RaymatError | None) -> None:
        """Raise the same error on every worker if any has one: the lowest rank's, a damaged checkpoint only if there is
        nothing worse.

        A worker that raised alone would leave the others waiting in their next collective.
        """
        errors = [found for found in self.gather(error) if found is not None]
        for found in sorted(errors, key=lambda e: isinstance(e, CheckpointError)):
            raise found
