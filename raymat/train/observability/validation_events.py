"""Events of validations, in the training loop and beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from raymat.train.observability.event import ErrorLine, Event, Reason, Step


def values_line(loss: float | None, metrics: Mapping[str, float | None]) -> str:
    """Format the values of a validation for people: "loss 0.1234, sad 1.23"."""
    values = {"loss": loss, **metrics}
    return ", ".join(f"{n} {'not finite' if v is None else f'{v:.4g}'}" for n, v in values.items())


@dataclass(frozen=True, kw_only=True)
class ValidationDone(Event):
    """The result of a validation is known to all workers."""

    kind = "validation"
    step: Step
    loss: Annotated[float | None, "the validation loss; null if it is not finite"]
    metrics: Annotated[dict[str, float | None], "metrics by name; null for one that is not finite"]
    seconds: Annotated[float, "s that it took"]
    place: Annotated[str, "where it ran, as in loop"]
    waited: Annotated[float, "s that training waited for it"]
    best: Annotated[bool, "whether it is the best so far by --best-metric"] = False

    @property
    def line(self) -> str:
        return f"validation of step {self.step}: {values_line(self.loss, self.metrics)}" + (
            ", the best so far" if self.best else ""
        )


@dataclass(frozen=True, kw_only=True)
class ValidationBegun(Event):
    """A validation begins beside training."""

    kind = "validation_begun"
    step: Step
    place: Annotated[str, "where it runs"]
    tries: Annotated[int, "how often it was begun so far"]


@dataclass(frozen=True, kw_only=True)
class ValidationRunning(Event):
    """The process of a validation beside training has given its first sign of life."""

    kind = "validation_runs"
    step: Step
    who: Annotated[str, "the process and its host"]


@dataclass(frozen=True, kw_only=True)
class ValidationFound(Event):
    """The result of a validation beside training is in storage."""

    kind = "validation_found"
    step: Step
    seconds: Annotated[float, "s that it took"]


@dataclass(frozen=True, kw_only=True)
class ValidationDied(Event):
    """A validation beside training died or fell silent; it is begun again, or the workers do it."""

    kind = "validation_died"
    level = "warning"
    step: Step
    error: ErrorLine
    tries: Annotated[int, "how often it was begun so far"]

    @property
    def line(self) -> str:
        return f"the validation of step {self.step} died: {self.error}"


@dataclass(frozen=True, kw_only=True)
class ValidationInLoop(Event):
    """The workers validate themselves, since nobody can beside training."""

    kind = "validation_in_loop"
    step: Step
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class ValidationDamaged(Event):
    """A result in storage is damaged, or of another run; the validation is done again."""

    kind = "validation_damaged"
    level = "warning"
    path: Annotated[str, "the object's, in the run's folder"]
    reason: Reason

    @property
    def line(self) -> str:
        return f"{self.path} is not believed: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class ValidationLost(Event):
    """The result of a validation will never be known."""

    kind = "validation_lost"
    level = "warning"
    step: Step
    reason: Reason

    @property
    def line(self) -> str:
        return f"the validation of step {self.step} is lost: {self.reason}"
