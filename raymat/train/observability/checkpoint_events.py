"""Events of checkpoints: saved, restored, passed over, and copied to the machine's disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from raymat.train.observability.event import (
    Checkpoint,
    DataWait,
    ErrorLine,
    Event,
    Reason,
    Step,
)


@dataclass(frozen=True, kw_only=True)
class CheckpointRestored(Event):
    """The workers have read a checkpoint and go on from it."""

    kind = "restore"
    attempt: Annotated[int, "number of the attempt that goes on, from 1"]
    checkpoint: Checkpoint
    step: Step
    seconds: Annotated[float, "s to find and read it"]
    nearby_bytes: Annotated[int, "bytes read from this machine's disk"]
    storage_bytes: Annotated[int, "bytes read from storage"]

    @property
    def line(self) -> str:
        return f"resumed from {self.checkpoint} (attempt {self.attempt})"


@dataclass(frozen=True, kw_only=True)
class CheckpointSkipped(Event):
    """A checkpoint was passed over on resume."""

    kind = "skip"
    level = "warning"
    checkpoint: Checkpoint
    step: Step
    reason: Reason

    @property
    def line(self) -> str:
        return f"skipped {self.checkpoint}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class CheckpointCommitted(Event):
    """A checkpoint is complete in storage, and a resume finds it."""

    kind = "commit"
    checkpoint: Checkpoint
    step: Step
    seconds: Annotated[float, "s from rank 0's snapshot until its shard was in storage"]
    stall: Annotated[float, "s that training stood still for it"]
    bytes: Annotated[int, "bytes of rank 0's shard"]
    data_wait: DataWait = None


@dataclass(frozen=True, kw_only=True)
class IntervalChosen(Event):
    """With `--checkpoint-interval auto` the steps between checkpoints have changed."""

    kind = "interval"
    step: Step
    interval: Annotated[int, "steps between checkpoints from here on"]
    step_seconds: Annotated[float, "s that a step takes, measured"]
    stall: Annotated[float, "s that training stands still for a checkpoint, measured"]
    save: Annotated[float, "s from a snapshot until it is in storage, measured"]
    losses: Annotated[int, "losses of workers without notice so far"]
    every: Annotated[float, "s of training between two such losses, expected"]


@dataclass(frozen=True, kw_only=True)
class CheckpointsDeleted(Event):
    """Checkpoints are about to be deleted. Written before, so that what a crash leaves of them is no damage."""

    kind = "delete"
    checkpoints: Annotated[list[str], "their folders' names, oldest first"]
    torn: Annotated[bool, "true for those that attempts that have ended left unfinished"]

    @property
    def line(self) -> str | None:
        names = ", ".join(self.checkpoints)
        return f"removed {names}: left unfinished by an earlier attempt" if self.torn else None


@dataclass(frozen=True, kw_only=True)
class NothingDeleted(Event):
    """The storage lets this account write but not delete: the run trains, and everything in its folder stays."""

    kind = "no_delete"
    level = "warning"
    right: Annotated[str, "name of the right that is missing"]

    @property
    def line(self) -> str:
        return (
            f"this account may not delete in the run's folder ({self.right} is missing): it trains, every checkpoint is kept, "
            "and nothing is merged"
        )


@dataclass(frozen=True, kw_only=True)
class SaveFailed(Event):
    """A save met an error of storage. Written for the first error of a checkpoint, and if it is given up."""

    kind = "save_failed"
    level = "warning"
    checkpoint: Checkpoint
    given_up: Annotated[bool, "false while it is tried again"]
    error: ErrorLine

    @property
    def line(self) -> str:
        what = "was given up" if self.given_up else "fails and is tried again"
        return f"saving {self.checkpoint} {what}: {self.error}"


@dataclass(frozen=True, kw_only=True)
class SaveSkipped(Event):
    """A save was due and left out, because the ones before are still on their way to storage."""

    kind = "save_skipped"
    step: Step


@dataclass(frozen=True, kw_only=True)
class LocalCopyDamaged(Event):
    """A copy of a shard on this machine's disk is damaged; the shard is read from storage instead."""

    kind = "nearby_damaged"
    checkpoint: Checkpoint
    file: Annotated[str, "name of the shard's file"]
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class LocalCopiesOff(Event):
    """A worker keeps no copies of shards on its machine's disk any more."""

    kind = "nearby_off"
    reason: Reason
