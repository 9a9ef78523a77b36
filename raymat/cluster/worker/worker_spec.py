"""What the driver hands to every worker."""

from __future__ import annotations

from dataclasses import dataclass

from raymat.checkpoint.manifest import CheckpointId
from raymat.cluster.blackboard import Blackboard
from raymat.train.run.open_run import OpenedRun
from raymat.train.validation.interface import Job


@dataclass(frozen=True)
class WorkerSpec:
    """What the driver hands to every worker; small and picklable."""

    run: OpenedRun
    board: Blackboard
    lease: str
    """The name of the driver's: without it they must not train."""
    resources: dict[str, float]
    """What each of them asks of Ray."""
    grows: bool
    """Whether machines may join."""

    def job(self, checkpoint: CheckpointId) -> Job:
        """Make the task that validates `checkpoint`."""
        run = self.run
        return Job(
            checkpoint, run.config, run.run_id, run.source, run.order, run.geometry, run.store
        )
