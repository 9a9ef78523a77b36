"""A validation as a Ray task of its own, beside training.

A plain task, owned by the board, that leaves its result in the run's storage. Ray Train's own validation
(`ray.train.report(..., validation=...)`) would not hold what a run promises: what it has still to validate and what came
of it is kept in Ray's ledger alone, which every start sets aside; a validation whose process or node dies for good fails
the controller, and with it training; where it finds no place the run never ends; and it begins at a report, of
which those that training would have to wait for are left out.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from raymat.checkpoint.manifest import CheckpointId
from raymat.cluster.validation_task import failure_text
from raymat.config.run import RunConfig
from raymat.train.validation.interface import Job, Place, ValidationStatus

log = logging.getLogger(__name__)


def place_for(
    config: RunConfig, per_worker: Mapping[str, float], resources: Mapping[str, float]
) -> Place:
    """Where a validation can run beside `config`'s workers in a cluster with `resources`.

    With GPUs on one that no worker takes, not even when all of them run: on a CPU the number would be another. Without
    GPUs on a core that neither the workers nor the read tasks need; --validation beside does with less, and
    shares their cores.
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
    """Rank 0's part: the seam by which the training loop has checkpoints validated. Its methods return at once."""

    def __init__(
        self,
        board: Any,
        job: Callable[[CheckpointId], Job],
        config: RunConfig,
        per_worker: Mapping[str, float],
    ) -> None:
        """`job`: what a task is told of a checkpoint. `per_worker`: what a worker asks of Ray."""
        self._board, self._job = board, job
        self._config, self._per_worker = config, per_worker
        self._claim: Mapping[str, float] = {}
        self._asked: Any = None
        self._standing = ValidationStatus(None, "waiting", 0.0)
        self._heard = time.monotonic()
        """When the board said so."""

    def place(self) -> Place:
        """Where one could run now."""
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
        self._board.begin_validation.remote(self._job(checkpoint), dict(self._claim), node)
        self._asked = None
        self._hear(ValidationStatus(checkpoint, "waiting", 0.0))

    def look(self) -> ValidationStatus:
        """How far the newest one was when the board last answered; where that is long ago it counts as silence."""
        if self._asked is None:
            self._asked = self._board.validation.remote()
        ready, _ = ray.wait([self._asked], timeout=0)
        if ready:
            self._asked = None
            try:
                self._hear(ray.get(ready[0]))
            except RayError as error:
                self._hear(
                    dataclasses.replace(self._standing, state="died", text=failure_text(error))
                )
        since = time.monotonic() - self._heard
        return dataclasses.replace(self._standing, seconds=self._standing.seconds + since)

    def end(self) -> None:
        """Nobody waits for it any more."""
        self._board.end_validation.remote()

    def _hear(self, standing: ValidationStatus) -> None:
        self._standing, self._heard = standing, time.monotonic()
