"""What numbers a run computes with, and the scale that keeps half-precision gradients from vanishing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from raymat.config.sections import Precision
from raymat.errors import CheckpointError

_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def settled(precision: Precision | None, device: torch.device) -> Precision:
    """The configured precision, or the device's default: fp16 on cuda, fp32 on cpu."""
    return precision or ("fp16" if device.type == "cuda" else "fp32")


def parameter_dtype(precision: Precision) -> torch.dtype:
    """What weights and pictures are kept in: float64 for fp64, else float32."""
    return torch.float64 if precision == "fp64" else torch.float32


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a network's forward pass."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


class LossScale:
    """The factor on the loss in fp16, searched for as torch's GradScaler does, without the host waiting for the device.

    Doubled after 2,000 good steps in a row, halved after a step whose gradients were not finite, never below 1: there
    such a step is no longer the search's doing. With other precisions it is 1 and stays so.
    """

    INITIAL, FLOOR, GROWTH_STEPS = 65536.0, 1.0, 2000

    def __init__(self, precision: Precision, device: torch.device) -> None:
        self.used = precision == "fp16"
        initial = self.INITIAL if self.used else self.FLOOR
        self.value = torch.tensor(initial, dtype=torch.float32, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def at_floor(self) -> Tensor:
        """Boolean (): whether it cannot go lower. Ask before `update`."""
        return self.value <= self.FLOOR

    def update(self, bad: Tensor) -> None:
        """After a step; `bad` is boolean (): whether its gradients were not finite."""
        if not self.used:
            return
        good_steps = torch.where(bad, 0, self._good_steps + 1)
        grow = good_steps >= self.GROWTH_STEPS
        lower = (self.value / 2).clamp(min=self.FLOOR)
        self.value = torch.where(bad, lower, torch.where(grow, self.value * 2, self.value))
        self._good_steps = torch.where(grow, 0, good_steps).to(torch.int32)

    def state_dict(self) -> dict[str, float]:
        """JSON-able; reads from the device."""
        return {"scale": float(self.value), "good_steps": int(self._good_steps)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of `state_dict`. Raises CheckpointError for what is none."""
        try:
            scale, good_steps = float(state["scale"]), int(state["good_steps"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint holds no loss scale: {error!r}") from error
        self.value = torch.full_like(self.value, scale)
        self._good_steps = torch.full_like(self._good_steps, good_steps)
