"""Keeps count of steps that had to be skipped, without making each step wait for the device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from raymat.errors import TrainingError
from raymat.train.loop.train_step import StepHealth


@dataclass(frozen=True)
class BadStep:
    """A completed step whose loss or gradient was not finite; its examples are first_example..last_example."""

    step: int
    first_example: int
    last_example: int
    loss: float
    gradient_norm: float

    def fields(self) -> dict[str, Any]:
        """JSON-able: numbers that are not finite as text."""
        return {
            "step": self.step,
            "examples": [self.first_example, self.last_example],
            "loss": str(self.loss),
            "gradient_norm": str(self.gradient_norm),
        }

    def __str__(self) -> str:
        return f"step {self.step} (examples {self.first_example} to {self.last_example})"


class NonfiniteStepCounter:
    """Reads the health of each step one step later on a GPU, at once on the CPU: the same on all workers.

    `in_a_row` is how many steps up to the newest one read had failed; it is part of the state.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self.in_a_row = 0
        self.heard = False
        """Whether any worker has heard of something in the newest step read."""
        self._limit = limit
        self._lag = 0 if device.type == "cpu" else 1
        self._waiting: deque[tuple[int, range, StepHealth]] = deque()
        self._run: list[BadStep] = []

    def push(self, step: int, numbers: range, health: StepHealth) -> list[BadStep]:
        """Note completed step `step` on the examples `numbers`; returns the failed steps that were found now."""
        self._waiting.append((step, numbers, health))
        return self._read(self._lag)

    def drain(self) -> list[BadStep]:
        """As `push`, for all steps that are still waiting. Needed before `in_a_row` is saved."""
        return self._read(0)

    def refuse(self) -> None:
        """TrainingError if more steps in a row failed than the limit allows, naming the last of them."""
        if self.in_a_row <= self._limit:
            return
        last = "; ".join(str(step) for step in self._run[-3:])
        raise TrainingError(
            f"loss or gradient was not finite in {self.in_a_row} steps in a row, the last: {last}; "
            f"{self._limit} are skipped (--max-bad-steps): lower the learning rates, use --precision fp32, "
            "or look at these examples"
        )

    def _read(self, keep: int) -> list[BadStep]:
        found = []
        while len(self._waiting) > keep:
            step, numbers, health = self._waiting.popleft()
            loss, norm, skipped, failed, self.heard = health.read()
            if failed:
                found.append(BadStep(step, numbers[0], numbers[-1], loss, norm))
                self.in_a_row += 1
                self._run.append(found[-1])
            elif not skipped:
                self.in_a_row, self._run = 0, []
        return found
