"""The Ray task that validates a checkpoint beside training.

A plain task, owned by the blackboard's actor, that leaves its result in the run's storage. Ray Train's own validation
(`ray.train.report(..., validation=...)`) would not keep a run's promises: it holds what is still to be validated, and what
came of it, in Ray's ledger alone, which every start sets aside; a validation whose process or node dies for good fails the
controller, and with it training; one that finds no place never lets the run end; and it begins at a report, of which those
that training would have to wait for are left out.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import first_line
from raymat.train.validation.interface import Job, ValidationStatus

NICENESS = 10
"""Of a validation's process: where it shares cores, training and the read tasks go first."""

Sign = Callable[[CheckpointId, str], None]
"""Shows that a checkpoint's validation makes progress, and in which process."""


class ValidationTask:
    """The newest validation's task. Owned by the blackboard, it outlives the workers that asked for it."""

    def __init__(self) -> None:
        self._task: Any = None
        self._checkpoint: CheckpointId | None = None
        self._signed, self._who = 0.0, ""

    def begin(self, job: Job, claim: Mapping[str, float], node: str, sign: Sign) -> None:
        """Start the task, and end the one before; one that validates the same checkpoint goes on instead.

        Args:
            claim: what the task takes of the cluster.
            node: Ray's id, in hex, of the node to share where nothing is claimed.
            sign: called in the task, again and again; can be pickled.
        """
        status = self.status()
        if status.checkpoint == job.checkpoint and status.state in ("waiting", "running"):
            return
        self.end()
        options: dict[str, Any] = {
            "num_cpus": claim.get("CPU", 0.0),
            "num_gpus": claim.get("GPU", 0.0),
            "max_retries": 0,  # rank 0 hears of each death, and asks again
            "max_calls": 1,  # the process ends with the task: its niceness and its memory go with it
        }
        if not claim:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        self._checkpoint, self._signed, self._who = job.checkpoint, time.monotonic(), ""
        self._task = ray.remote(**options)(_validate).remote(job, sign)

    def sign(self, checkpoint: CheckpointId, who: str) -> None:
        """Note that the task makes progress; `who`: its process."""
        if checkpoint == self._checkpoint:
            self._signed, self._who = time.monotonic(), who

    def status(self) -> ValidationStatus:
        """Return how far the task is."""
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


def _validate(job: Job, sign: Sign) -> None:
    """Validate in the task's process."""
    os.nice(NICENESS)
    import torch

    from raymat.train.validation.checkpoint_validation import validate_checkpoint

    device = torch.device("cuda" if job.config.workers.device == "cuda" else "cpu")
    who = f"process {os.getpid()} on {socket.gethostname()}"
    validate_checkpoint(job, device, lambda: sign(job.checkpoint, who))


def failure_text(error: RayError) -> str:
    """Return what failed inside a task: the class of the error and the first line of its text."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause else error
    return f"{type(cause).__name__}: {first_line(cause)}"
