"""The Ray task that validates a checkpoint beside training."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import first_line
from raymat.train.validation.interface import Job, ValidationStatus

NICENESS = 10
"""Of a validation's process: where it shares cores, training and the read tasks go first."""


class ValidationTask:
    """The board's part: it owns the one task, so that a validation outlives the workers that asked for it."""

    def __init__(self) -> None:
        self._task: Any = None
        self._checkpoint: CheckpointId | None = None
        self._signed, self._who = 0.0, ""

    def begin(self, job: Job, claim: Mapping[str, float], node: str, board: Any) -> None:
        """Start the task; one that still runs is ended, unless it is this very one.

        `node`: the one to share where nothing is claimed, Ray's id in hex.
        """
        standing = self.look()
        if standing.checkpoint == job.checkpoint and standing.state in ("waiting", "running"):
            return
        self.end()
        options: dict[str, Any] = {
            "num_cpus": claim.get("CPU", 0.0),
            "num_gpus": claim.get("GPU", 0.0),
            "max_retries": 0,  # who asked is told of each death, and asks again
            "max_calls": 1,  # the process ends with the task: its niceness and its memory go with it
        }
        if not claim:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        self._checkpoint, self._signed, self._who = job.checkpoint, time.monotonic(), ""
        self._task = ray.remote(**options)(_validate).remote(job, board)

    def sign(self, checkpoint: CheckpointId, who: str) -> None:
        """The task gets on; `who`: its process."""
        if checkpoint == self._checkpoint:
            self._signed, self._who = time.monotonic(), who

    def look(self) -> ValidationStatus:
        """How far the task is."""
        if self._task is None:
            return ValidationStatus(self._checkpoint, "died", 0.0, "it was never begun")
        ready, _ = ray.wait([self._task], timeout=0)
        if not ready:
            seconds = time.monotonic() - self._signed
            state: Literal["running", "waiting"] = "running" if self._who else "waiting"
            return ValidationStatus(self._checkpoint, state, seconds, self._who)
        try:
            ray.get(ready[0])
        except RayError as error:
            return ValidationStatus(self._checkpoint, "died", 0.0, failure_text(error))
        return ValidationStatus(self._checkpoint, "ended", 0.0)

    def end(self) -> None:
        """End the task if it still runs."""
        if self._task is not None:
            ray.cancel(self._task, force=True)
        self._task, self._checkpoint = None, None


def _validate(job: Job, board: Any) -> None:
    """The task."""
    os.nice(NICENESS)
    import torch

    from raymat.train.validation.checkpoint_validation import validate_checkpoint

    device = torch.device("cuda" if job.config.workers.device == "cuda" else "cpu")

    who = f"process {os.getpid()} on {socket.gethostname()}"

    def sign() -> None:
        board.sign_validation.remote(job.checkpoint, who)

    validate_checkpoint(job, device, sign)


def failure_text(error: RayError) -> str:
    """Return what failed inside a task: the class of the error and the first line of its text."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause else error
    return f"{type(cause).__name__}: {first_line(cause)}"
