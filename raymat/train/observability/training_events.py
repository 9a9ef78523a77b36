"""Events of training itself: first weights, steps, learning rates and images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from raymat.data.matte_statistics import LIKELY
from raymat.train.observability.event import Event, Reason, Step


@dataclass(frozen=True, kw_only=True)
class WeightsInitialized(Event):
    """A new run has taken its first weights from `--init`."""

    kind = "init"
    url: Annotated[str, "where they come from"]
    summary: Annotated[str, "which weights were taken"]

    @property
    def line(self) -> str:
        return self.summary


@dataclass(frozen=True, kw_only=True)
class AverageStarted(Event):
    """A resumed run begins the average of its weights, which its checkpoint does not have."""

    kind = "ema"
    step: Step
    summary: Annotated[str, "that it begins, for people"]

    @property
    def line(self) -> str:
        return self.summary


@dataclass(frozen=True, kw_only=True)
class FirstStepDone(Event):
    """The first step of an attempt is done."""

    kind = "first_step"
    step: Step
    seconds: Annotated[float, "s since the attempt started"]
    batch: Annotated[float, "s from the attempt's start to its first batch"]


@dataclass(frozen=True, kw_only=True)
class StepSkipped(Event):
    """A step changed no weight, since its loss or gradient was not finite."""

    kind = "nonfinite"
    level = "warning"
    step: Step
    examples: Annotated[list[int], "numbers of its first and last example"]
    loss: Annotated[str, "the loss as text: nan, inf or a number"]
    gradient_norm: Annotated[str, "the gradient's norm as text"]

    @property
    def line(self) -> str:
        return f"step {self.step} was skipped: loss {self.loss}, gradient norm {self.gradient_norm}"


@dataclass(frozen=True, kw_only=True)
class RatesLowered(Event):
    """The validation loss stands still (`--schedule plateau`), and the learning rates are lower from now on."""

    kind = "plateau"
    step: Step
    reductions: Annotated[int, "how often they were lowered so far"]
    lr: Annotated[dict[str, float], "learning rate by part of the network"]

    @property
    def line(self) -> str:
        lowered = ", ".join(f"{part} {rate:.3g}" for part, rate in self.lr.items())
        return f"learning rates lowered after step {self.step}: {lowered}"


@dataclass(frozen=True, kw_only=True)
class MattesDoubted(Event):
    """Some mattes are likely to be something else. Written once for each kind in an attempt; nothing is refused."""

    kind = "mattes"
    level = "warning"
    likely: Annotated[
        str,
        "inverted, empty, void, full, faint, shallow, hard, flat, limited, photograph or premultiplied",
    ]
    count: Annotated[int, "how many of those that were looked at"]
    looked: Annotated[int, "how many were looked at so far"]
    path: Annotated[str, "the first of them"]

    @property
    def line(self) -> str:
        return f"{self.count:,} of the first {self.looked:,} mattes {LIKELY[self.likely]} ({self.path})"


@dataclass(frozen=True, kw_only=True)
class LoggerBehind(Event):
    """A service that shows the run's curves (`--logger wandb`, `mlflow`) does not take them. Written once until it does."""

    kind = "logger_behind"
    level = "warning"
    logger: Annotated[str, "wandb or mlflow"]
    step: Annotated[int, "the newest step that it should have"]
    reason: Reason

    @property
    def line(self) -> str:
        return f"{self.logger} does not take rows ({self.reason}): they stay in metrics/, and are sent later"


@dataclass(frozen=True, kw_only=True)
class LoggerCaughtUp(Event):
    """A service has the run's curves again."""

    kind = "logger_caught_up"
    logger: Annotated[str, "wandb or mlflow"]
    step: Annotated[int, "the newest step that it has"]

    @property
    def line(self) -> str:
        return f"{self.logger} has the rows up to step {self.step} again"


@dataclass(frozen=True, kw_only=True)
class ImageReplaced(Event):
    """An image could not be read, and another takes its place. Written once for each file and worker."""

    kind = "replaced"
    level = "warning"
    path: Annotated[str, "the file"]
    reason: Reason
    example: Annotated[int, "number of the first example that it was replaced in"]

    @property
    def line(self) -> str:
        return (
            f"cannot use {self.path}: {self.reason}; another stands in for it, as for "
            f"example {self.example}"
        )
