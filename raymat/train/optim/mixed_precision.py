"""Precisions, and the loss scale that keeps half-precision gradients from vanishing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from raymat.config.sections import Precision
from raymat.errors import CheckpointError

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def parameter_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of weights and pictures: float64 for fp64, else float32."""
    return torch.float64 if precision == "fp64" else torch.float32


def activation_dtype(precision: Precision) -> torch.dtype:
    """Return the dtype of what convolutions give."""
    return _AUTOCAST.get(precision, parameter_dtype(precision))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context for a network's forward pass."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


class LossScale:
    """The factor on the loss in fp16, adjusted as torch's GradScaler does but without the host waiting for the device.

    It doubles after 2,000 good steps in a row and halves after a step whose gradients were not finite, never below 1:
    there the scale is not to blame for such a step. With other precisions it stays 1.
    """

    INITIAL, FLOOR, GROWTH_STEPS = 65536.0, 1.0, 2000

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.used = precision == "fp16"
        initial = self.INITIAL if self.used else self.FLOOR
        self.value = torch.tensor(initial, dtype=torch.float32, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def at_floor(self) -> Tensor:
        """Return whether it cannot go lower, boolean (). Call before `update`."""
        return self.value <= self.FLOOR

    def update(self, bad: Tensor) -> None:
        """Adjust the scale after a step; `bad` is boolean (): whether its gradients were not finite."""
        if not self.used:
            return
        good_steps = torch.where(bad, 0, self._good_steps + 1)
        grow = good_steps >= self.GROWTH_STEPS
        lower = (self.value / 2).clamp(min=self.FLOOR)
        self.value = torch.where(bad, lower, torch.where(grow, self.value * 2, self.value))
        self._good_steps = torch.where(grow, 0, good_steps).to(torch.int32)

    def state_dict(self) -> dict[str, float]:
        """Return the state, JSON-able; reads from the device."""
        return {"scale": float(self.value), "good_steps": int(self._good_steps)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Load what `state_dict` returned. Raises CheckpointError if it is something else."""
        try:
            scale, good_steps = float(state["scale"]), int(state["good_steps"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint holds no loss scale: {error!r}") from error
        self.value = torch.full_like(self.value, scale)
        self._good_steps = torch.full_like(self._good_steps, good_steps)
