"""The training function of every Ray Train worker, and what it is given: all that a driver knows of workers.

Drivers, and Ray Train's controller, import neither torch nor the training loop: it would cost each seconds before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


def train_worker(config: dict[str, Any]) -> None:
    """Train as one worker: Ray Train's training function."""
    from raymat.cluster.worker.worker import train

    train(config["spec"])
