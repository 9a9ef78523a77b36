"""The interface between the training loop and whatever validates checkpoints beside it.

Free of torch: the process that passes such tasks on does not need it.
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
from raymat.storage.store import Store


@dataclass(frozen=True)
class Job:
    """A validation as a task: all that it needs; small and picklable."""

    checkpoint: CheckpointId
    config: RunConfig
    """The run's, with its precision and device decided."""
    run_id: str
    source: SourceSpec
    order: SampleOrder
    geometry: Geometry
    store: Store


@dataclass(frozen=True)
class Place:
    """A place where a validation can run beside training, or that there is none."""

    claim: Mapping[str, float] | None
    """The resources that it takes of the cluster; None: there is no place."""
    text: str
    """For people: where, or why nowhere."""


@dataclass(frozen=True)
class ValidationStatus:
    """The status of a validation beside training."""

    checkpoint: CheckpointId | None
    """The one that is validated; None: no validation was begun."""
    state: Literal["waiting", "running", "ended", "died"]
    """waiting: for a place, or for its process to start."""
    seconds: float
    """Since it began to wait, or since its last sign of life."""
    text: str = ""
    """While it runs, the process that does it; once it died, why."""


class Validator(Protocol):
    """Validates checkpoints beside training, one at a time, and leaves each result in storage.

    Called by rank 0 alone. Every method returns at once.
    """

    def place(self) -> Place:
        """Return where the next validation can run beside training now."""

    def begin(self, checkpoint: CheckpointId) -> None:
        """Begin to validate `checkpoint`, unless that is going on already; end the validation of another one."""

    def look(self) -> ValidationStatus:
        """Return the status of the newest one, as far as is known."""

    def end(self) -> None:
        """End the newest one."""


class NoValidator:
    """A validator for runs that have nobody to validate beside training."""

    def place(self) -> Place:
        return Place(None, "there is nobody to do it")

    def begin(self, checkpoint: CheckpointId) -> None:
        return

    def look(self) -> ValidationStatus:
        return ValidationStatus(None, "died", 0.0, "there is nobody to do it")

    def end(self) -> None:
        return
