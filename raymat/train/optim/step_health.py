"""What became of each step, and the count of those that failed, without making a step wait for the device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from raymat.errors import TrainingError


class Health(NamedTuple):
    """What became of a step."""

    loss: float
    """The mean over the global batch."""
    norm: float
    """Of the gradient, before it was clipped."""
    skipped: bool
    """Whether the step left the state as it was."""
    failed: bool
    """Whether that counts as a failure: in fp16 an overflow does not while the loss scale can still go lower."""
    heard: bool
    """Whether any worker has heard of a preemption."""


class StepHealth:
    """A step's Health on its way from the device to the host."""

    def __init__(
        self, loss: Tensor, norm: Tensor, skipped: Tensor, failed: Tensor, heard: Tensor
    ) -> None:
        """Take the fields of Health as scalars () on the device."""
        values = torch.stack([value.double() for value in (loss, norm, skipped, failed, heard)])
        self._done: torch.cuda.Event | None = None
        if values.is_cuda:
            # Copied now: a copy asked for later would wait for all that was queued until then.
            pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = pinned.copy_(values, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()
        self._values = values

    def read(self) -> Health:
        """Wait for the step's end on the device, and return what became of it."""
        if self._done is not None:
            self._done.synchronize()
        loss, norm, skipped, failed, heard = self._values.tolist()
        return Health(loss, norm, bool(skipped), bool(failed), bool(heard))


@dataclass(frozen=True)
class BadStep:
    """A completed step whose loss or gradient was not finite; its examples are first_example..last_example."""

    step: int
    first_example: int
    last_example: int
    loss: float
    gradient_norm: float

    def __str__(self) -> str:
        return f"step {self.step} (examples {self.first_example} to {self.last_example})"


class NonfiniteStepCounter:
    """Reads the health of each step one step later on a GPU, at once on the CPU; the same on all workers.

    `in_a_row` is how many steps up to the newest one read have failed; it is part of the run's state.
    """

    def __init__(self, limit: int, device: torch.device, in_a_row: int = 0) -> None:
        self.in_a_row = in_a_row
        self.heard = False
        """Whether any worker has heard of a preemption in the newest step read."""
        self._limit = limit
        self._lag = 0 if device.type == "cpu" else 1
        self._waiting: deque[tuple[int, range, StepHealth]] = deque()
        self._run: list[BadStep] = []

    def push(self, step: int, numbers: range, health: StepHealth) -> list[BadStep]:
        """Note completed step `step` on the examples `numbers`; return the failed steps that were found now."""
        self._waiting.append((step, numbers, health))
        return self._read(self._lag)

    def drain(self) -> list[BadStep]:
        """Read all steps that still wait; return those that failed. Needed before `in_a_row` is saved."""
        return self._read(0)

    def require_finite(self) -> None:
        """Raise a TrainingError that names the last failed steps if more of them in a row failed than the limit allows."""
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
            read = health.read()
            self.heard = read.heard
            if read.failed:
                found.append(BadStep(step, numbers[0], numbers[-1], read.loss, read.norm))
                self.in_a_row += 1
                self._run.append(found[-1])
            elif not read.skipped:
                self.in_a_row, self._run = 0, []
        return found
