"""What the training loop is given: the run, the worker process it runs in, and the host that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from raymat.checkpoint.manifest import CheckpointId
from raymat.config.run import RunConfig
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World
from raymat.train.loop.watchdog import Activity, Heartbeat
from raymat.train.observability.event import Event
from raymat.train.observability.progress import Progress
from raymat.train.run.first_weights import FirstWeights
from raymat.train.run.notice import HeardNotice


class TrainableRun(Protocol):
    """A run, equal on all workers and in all of its attempts."""

    @property
    def config(self) -> RunConfig: ...

    @property
    def run_id(self) -> str: ...

    @property
    def listing_digest(self) -> str:
        """The digest of the dataset's listing."""

    @property
    def order(self) -> SampleOrder: ...

    @property
    def first_weights(self) -> FirstWeights | None:
        """What --init was when the run was begun."""


@dataclass(frozen=True)
class Worker:
    """This process: its place among the workers, its device, and its machine's disk."""

    world: World
    device: torch.device
    cache_folder: str | None = None
    """A folder on this machine for copies of its newest shards; None: keep none."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The process's environment variables: some of them change bits."""


class Host:
    """Whoever runs the training loop and follows it. By default every method does nothing: override what you need."""

    def attempt_began(self, number: int) -> None:
        """Take note of the attempt's number. Called once, before all else."""

    def goodput(self) -> float | None:
        """Return the share of all workers' time that was training which counts, None if nobody reckons it; must return at once.

        Rank 0 asks with each training row.
        """
        return None

    def register_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Keep `heartbeat`, from which any thread can read what this worker does. Called once, before training begins."""

    def restored(self, checkpoint: CheckpointId | None) -> None:
        """Training resumes from `checkpoint`, or starts from the first step. Called once by every worker."""

    def committed(self, checkpoint: CheckpointId, metrics: dict[str, Any]) -> None:
        """Take note of a commit; must return at once.

        Every worker calls it at the same step, when none of them is busy. Of several checkpoints that were committed
        while one was busy, only the newest is passed on.
        """

    def busy(self) -> bool:
        """Whether this worker still handles the last `committed`."""
        return False

    def require_lease(self) -> None:
        """Raise LeaseLostError if another driver has the run. Rank 0 asks before it deletes what others may read.

        Raises StorageError where nobody can tell.
        """

    def notice(self) -> HeardNotice | None:
        """Return the notice that holds for this worker now; asked in every step, must return at once."""
        return None

    def progress(self, progress: Progress) -> None:
        """Take note of the run's progress; rank 0 calls it after logged steps and commits; must return at once."""

    def event(self, event: Event) -> None:
        """Take note of an event that this worker writes to the run's log; must return at once."""

    def stuck(self, activity: Activity) -> None:
        """End this process if somebody restarts it: its training thread has stood still for too long.

        Called in the watchdog's thread.
        """

    def ended(self) -> None:
        """Wait for what `committed` began: training is over, by every worker's account."""
