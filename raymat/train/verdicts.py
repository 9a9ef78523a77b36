"""What a run's validations found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from raymat.config import Mode


@dataclass(frozen=True)
class Validation:
    """One validation: the means over all validation examples after `step` completed steps."""

    step: int
    loss: float | None
    """None where it was not finite."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """All else that was measured, by name: `sad`, `mse`, ..., and `ema_loss`, `ema_sad`, ... of averaged weights."""

    def value(self, name: str) -> float | None:
        """The metric of this name, or the loss; None where it was not finite or not measured."""
        return self.loss if name == "loss" else self.metrics.get(name)


def best_of(validations: Iterable[Validation], metric: str, mode: Mode) -> Validation | None:
    """The validation with the lowest (`min`) or highest (`max`) value; the earliest of equals."""
    sign = 1.0 if mode == "min" else -1.0
    found = [(sign * v, each) for each in validations if (v := each.value(metric)) is not None]
    return min(found, key=lambda pair: (pair[0], pair[1].step))[1] if found else None
