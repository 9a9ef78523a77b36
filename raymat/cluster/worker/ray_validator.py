"""Rank 0's side of the validations that run beside training as Ray tasks (`raymat.cluster.validation_task`)."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

import ray
from ray.exceptions import RayError

from raymat.checkpoint.manifest import CheckpointId
from raymat.cluster.blackboard import Blackboard
from raymat.cluster.validation_task import failure_text
from raymat.config.run import RunConfig
from raymat.train.validation.interface import Job, Place, ValidationStatus

log = logging.getLogger(__name__)


def place_for(
    config: RunConfig, per_worker: Mapping[str, float], resources: Mapping[str, float]
) -> Place:
    """Choose where a validation can run beside `config`'s workers in a cluster with `resources`.

    With GPUs: on one that no worker takes, not even when all of them run; a CPU would give another number. Without GPUs:
    on a core that neither the workers nor the read tasks need; --validation beside does with less, and shares their
    cores.
    """
    workers = config.workers.workers.high
    if config.workers.device == "cuda":
        free = resources.get("GPU", 0) - workers
        if free < 1:
            return Place(None, f"{workers} workers take every GPU")
        return Place({"GPU": 1.0}, "on a GPU of its own")
    reading = config.workers.decode_tasks or 1
    free = resources.get("CPU", 0) - workers * per_worker.get("CPU", 0) - reading
    if free + 1e-6 >= 1:
        return Place({"CPU": 1.0}, "on a core of its own")
    if config.log.validation == "beside":
        return Place({}, "sharing the cores of training")
    return Place(None, "no core is free")


class RayValidator:
    """The training loop's `Validator` on Ray."""

    def __init__(
        self,
        board: Blackboard,
        job: Callable[[CheckpointId], Job],
        config: RunConfig,
        per_worker: Mapping[str, float],
    ) -> None:
        """`job` makes a checkpoint's task; `per_worker` is what a worker asks of Ray."""
        self._board, self._job = board, job
        self._config, self._per_worker = config, per_worker
        self._claim: Mapping[str, float] = {}
        self._poll = board.poll_validation(ValidationStatus(None, "waiting", 0.0))

    def place(self) -> Place:
        """Choose where a validation could run now."""
        try:
            resources = ray.cluster_resources()
        except (RayError, ConnectionError, TimeoutError) as error:
            log.warning("cannot ask what the cluster has: %s", error)
            return Place(None, "the cluster does not answer")
        place = place_for(self._config, self._per_worker, resources)
        self._claim = place.claim or {}
        return place

    def begin(self, checkpoint: CheckpointId) -> None:
        """Validate `checkpoint`; a validation of another one that still runs is ended."""
        node = ray.get_runtime_context().get_node_id()
        self._board.begin_validation(self._job(checkpoint), dict(self._claim), node)
        self._poll = self._board.poll_validation(ValidationStatus(checkpoint, "waiting", 0.0))

    def look(self) -> ValidationStatus:
        """Return how far the newest was when the blackboard last answered; the time since then counts as silence."""
        try:
            self._poll.update()
        except RayError as error:
            died = dataclasses.replace(self._poll.latest, state="died", text=failure_text(error))
            self._poll.set(died)
        status = self._poll.latest
        return dataclasses.replace(
            status, seconds=status.seconds + time.monotonic() - self._poll.heard
        )

    def end(self) -> None:
        """End the newest."""
        self._board.end_validation()
