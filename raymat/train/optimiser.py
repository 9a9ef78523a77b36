"""Adam with one learning rate per part of the network, a step that the device itself can call off, and a state by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from raymat.errors import CheckpointError
from raymat.model.matting import PARTS

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam keeps for each parameter."""


class PartAdam:
    """torch's fused Adam, default betas, no weight decay, over the parameters of `network`.

    The state of every parameter is there from the start, so that a checkpoint of step 0 has the same tensors as any other.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parameters = dict(network.named_parameters())
        groups = [
            {"params": found, "part": part}
            for part in PARTS
            if (found := [p for n, p in self._parameters.items() if n.split(".")[0] == part])
        ]
        # Only the fused kernels take `found_inf`; they exist for the CPU and for CUDA.
        self._adam = torch.optim.Adam(groups, fused=True)
        for parameter in self._parameters.values():
            # As Adam would at its first step. The moments must lie in memory as the parameter does: the fused
            # kernels walk through them side by side.
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    def step(self, rates: Mapping[str, float], bad: Tensor, scale: Tensor | None) -> None:
        """One step at `rates` by part, nothing at all where the boolean `bad` () is true; gradients are divided by `scale`."""
        for group in self._adam.param_groups:
            group["lr"] = rates[group["part"]]
        # How torch's GradScaler calls a step off: read by the kernel, so that the host need not wait.
        self._adam.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
        self._adam.grad_scale = scale  # type: ignore[attr-defined]
        self._adam.step()

    def state_dict(self) -> dict[str, Tensor]:
        """The live tensors by "moment/parameter name", as in "exp_avg/backbone.conv1.weight"."""
        return dict(self._named())

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors`, named as in `state_dict`, into the state.

        Raises:
            CheckpointError: names or shapes are not those of this network.
        """
        own = self.state_dict()
        require_same(own, tensors, "optimizer state")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for moment in MOMENTS:
            for name, parameter in self._parameters.items():
                yield f"{moment}/{name}", self._adam.state[parameter][moment]


def require_same(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """CheckpointError unless both have the same names, shapes and dtypes."""
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    other = [
        name
        for name in sorted(own.keys() & given.keys())
        if own[name].shape != given[name].shape or own[name].dtype != given[name].dtype
    ]
    for told, names in (("lacks", missing), ("has an unknown", extra), ("has another", other)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"the checkpoint's {what} {told} {names[0]}{more}")
