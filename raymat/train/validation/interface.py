"""The seam between the training loop and whoever validates checkpoints beside it.

Free of torch: the process that hands such work on has no need of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from raymat.checkpoint.manifest import CheckpointId
from raymat.config.run import RunConfig
from raymat.data.batch import Geometry
from raymat.data.dataset.source import SourceSpec
from raymat.data.sample_order import SampleOrder


@dataclass(frozen=True)
class Job:
    """A validation as a task: everything it needs beside the storage; small and picklable."""

    checkpoint: CheckpointId
    config: RunConfig
    """The run's, with its precision and device settled."""
    run_id: str
    source: SourceSpec
    order: SampleOrder
    geometry: Geometry


@dataclass(frozen=True)
class Place:
    """Where a validation can run beside training."""

    claim: Mapping[str, float] | None
    """What it takes of the cluster; None: there is no place."""
    text: str
    """For people: where, or why nowhere."""


@dataclass(frozen=True)
class ValidationStatus:
    """How far a validation beside training is."""

    checkpoint: CheckpointId | None
    """Of which; None: none was begun."""
    state: Literal["waiting", "running", "ended", "died"]
    """waiting: for a place, or for its process to start."""
    seconds: float
    """How long it has been waiting, or since it last gave a sign of life."""
    text: str = ""
    """While it runs, who does it; what it died of."""


class Validator(Protocol):
    """Whoever validates checkpoints beside training, one at a time, with the result left in storage.

    Asked by rank 0 alone. Every method returns at once.
    """

    def place(self) -> Place:
        """Whether the next one can run beside training, as things are now."""

    def begin(self, checkpoint: CheckpointId) -> None:
        """Validate `checkpoint`. If it is being validated already that goes on; of another one, that is ended."""

    def look(self) -> ValidationStatus:
        """How far the newest one is, as far as is known."""

    def end(self) -> None:
        """End the newest one."""


class NoValidator:
    """Nobody validates beside training."""

    def place(self) -> Place:
        return Place(None, "there is nobody to do it")

    def begin(self, checkpoint: CheckpointId) -> None:
        return

    def look(self) -> ValidationStatus:
        return ValidationStatus(None, "died", 0.0, "there is nobody to do it")

    def end(self) -> None:
        return
