"""Adam with one learning rate per part of the network, steps that the device itself can skip, and a state by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from raymat.checkpoint.state_dict import copy_same
from raymat.model.matting import PARTS

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""The tensors that Adam keeps for each parameter."""


class PartAdam:
    """Adam (Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015), default betas; with a weight decay AdamW
    (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019).

    Calls torch's fused kernels by their functional interface: torch.optim.Adam would import torch's compiler, 2 to 3 s of
    every restart. The state of every parameter is there from the start, so that a checkpoint of step 0 has the same tensors
    as any other; parameters that need no gradients never change, and keep moments of 0.
    """

    BETAS, EPS = (0.9, 0.999), 1e-8

    def __init__(self, network: nn.Module, weight_decay: float = 0.0) -> None:
        """`weight_decay`: each step subtracts it times the rate from every weight, but not from biases and norms, which have
        one dimension: they are few, and nothing is gained by drawing a norm's factor to 0.
        """
        self._parameters = dict(network.named_parameters())
        # The moments lie in memory as the parameter does: the fused kernels walk through them side by side.
        self._state: dict[str, dict[str, Tensor]] = {
            "step": {n: _zero(p) for n, p in self._parameters.items()},
            "exp_avg": {n: torch.zeros_like(p) for n, p in self._parameters.items()},
            "exp_avg_sq": {n: torch.zeros_like(p) for n, p in self._parameters.items()},
        }
        self._groups: list[tuple[str, list[str], float]] = []
        for part in PARTS:
            mine = [
                n
                for n, p in self._parameters.items()
                if n.split(".")[0] == part and p.requires_grad
            ]
            decayed = [n for n in mine if weight_decay and self._parameters[n].dim() > 1]
            rest = [n for n in mine if n not in set(decayed)]
            self._groups += [
                group for group in ((part, decayed, weight_decay), (part, rest, 0.0)) if group[1]
            ]

    @torch.no_grad()
    def step(self, rates: Mapping[str, float], bad: Tensor, scale: Tensor | None) -> None:
        """Take one step at `rates` by part, or none if the boolean `bad` () is true; gradients are divided by `scale`."""
        for part, names, decay in self._groups:
            self._step(names, rates[part], decay, bad.to(torch.float32), scale)

    def _step(
        self, names: list[str], rate: float, decay: float, bad: Tensor, scale: Tensor | None
    ) -> None:
        parameters: list[Tensor] = [self._parameters[n] for n in names]
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert len(gradients) == len(parameters)
        step, exp_avg, exp_avg_sq = ([self._state[m][n] for n in names] for m in MOMENTS)
        adam(
            parameters,
            gradients,
            exp_avg,
            exp_avg_sq,
            [],
            step,
            # Only the fused kernels let the device skip a step; they exist for the CPU and for CUDA.
            fused=True,
            grad_scale=scale,
            found_inf=bad,
            amsgrad=False,
            beta1=self.BETAS[0],
            beta2=self.BETAS[1],
            lr=rate,
            weight_decay=decay,
            decoupled_weight_decay=decay > 0,
            eps=self.EPS,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the live tensors by "moment/parameter name", as in "exp_avg/backbone.conv1.weight"."""
        return dict(self._named())

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors`, named as in `state_dict`, into the state.

        Raises:
            CheckpointError: names or shapes are not those of this network.
        """
        copy_same(self.state_dict(), tensors, "optimizer state")

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for moment in MOMENTS:
            for name, tensor in self._state[moment].items():
                yield f"{moment}/{name}", tensor


def _zero(parameter: Tensor) -> Tensor:
    """Make a count of steps, as the fused kernels expect it."""
    return torch.zeros((), dtype=torch.float32, device=parameter.device)
