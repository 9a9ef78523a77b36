"""An exponential moving average of the weights, kept on the network's device.

The decay is per step, as published figures are: the average removes the noise between one step and the next. It is warmed
up by the count of averaged steps, min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage: until the
decay is reached the average is over about the last ninth of the steps so far, whatever the batch size. Another batch size
keeps the same span of examples with decay ** (new / old) (Busbridge et al., "How to Scale Your EMA", NeurIPS 2023).

Batch-norm statistics are averaged as the weights are; counts of batches are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raymat.checkpoint.state_dict import copy_same


class WeightAverage:
    """The average of a network's state dict, as a network of its own that is always in evaluation mode."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Begin with the weights of `network`, which stays the live one: from here on its tensors must not be replaced."""
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self._decay = decay
        live, own = list(network.state_dict().values()), list(self.network.state_dict().values())
        self._updates = torch.zeros((), dtype=torch.int64, device=live[0].device)
        pairs = list(zip(live, own, strict=True))
        self._averaged = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._copied = [(a, b) for a, b in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def restart(self) -> None:
        """Start again from the weights as they are."""
        self._updates.zero_()
        for live, own in (*self._averaged, *self._copied):
            own.copy_(live)

    @torch.no_grad()
    def update(self, bad: Tensor) -> None:
        """Average the weights after a step in, unless the boolean `bad` () is true; the host does not wait to know."""
        done = self._updates.double()
        decay = ((1 + done) / (10 + done)).clamp(max=self._decay)
        live, own = ([pair[i] for pair in self._averaged] for i in (0, 1))
        # average += (1 - decay) * (weights - average)
        change = torch._foreach_sub(live, own)
        torch._foreach_mul_(change, torch.where(bad, 0.0, 1 - decay).to(own[0].dtype))
        torch._foreach_add_(own, change)
        for source, target in self._copied:
            target.copy_(source)
        self._updates += ~bad

    @property
    def updates(self) -> int:
        """How many steps were averaged since it began; reads from the device."""
        return int(self._updates)

    def tensors(self) -> dict[str, Tensor]:
        """Return the live tensors by the names of the network's state dict."""
        return dict(self.network.state_dict())

    def state_dict(self) -> dict[str, int]:
        """Return all else, JSON-able; reads from the device."""
        return {"updates": self.updates}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Load what `tensors` and `state_dict` returned. Raises CheckpointError if it is something else."""
        copy_same(self.tensors(), tensors, "average of the weights")
        self._updates.fill_(int(state["updates"]))
