"""What runs in every Ray Train worker: it connects the training loop to Ray and nothing else."""

from __future__ import annotations

import logging
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode

from raymat.checkpoint.local_cache import cache_folder
from raymat.checkpoint.manifest import CheckpointId
from raymat.cluster.blackboard import Blackboard
from raymat.cluster.worker.datasource import StreamPlan
from raymat.cluster.worker.notice_listener import NoticeListener
from raymat.cluster.worker.ray_feed import RayFeed
from raymat.cluster.worker.ray_validator import RayValidator
from raymat.config.run import RunConfig
from raymat.distributed.world import World
from raymat.storage.store import Store
from raymat.train.loop import trainer
from raymat.train.loop.watchdog import Activity, Heartbeat
from raymat.train.observability.event_kinds import parse_event
from raymat.train.observability.progress import Progress
from raymat.train.run.lease.lease import LeaseWatch, require
from raymat.train.run.notice import Notice
from raymat.train.validation.interface import Job

log = logging.getLogger(__name__)

STUCK_EXIT = 70
REPORT_SECONDS = 30.0
"""How long a worker waits at its end for Ray to take what it reported."""


@dataclass(frozen=True)
class WorkerSpec:
    """What the driver tells every worker; small and picklable."""

    config: RunConfig
    run_id: str
    listing_digest: str
    plan: StreamPlan
    board: Blackboard
    lease: str
    """The name of the driver's: without it they must not train."""
    resources: dict[str, float]
    """What each of them asks of Ray."""

    def job(self, checkpoint: CheckpointId) -> Job:
        """What a task that validates is told."""
        plan = self.plan
        return Job(checkpoint, self.config, self.run_id, plan.source, plan.order, plan.geometry)


class RayHost:
    """The training loop's host on Ray: reports commits to Ray Train, progress to the board.

    `report` is a barrier over all ranks, so every rank calls it equally often; only rank 0 names a
    checkpoint. It returns when Ray's controller has looked, up to seconds later: a thread waits for
    it. Ray's own ledger is told of commits but never asked: what is in storage decides where a run
    resumes.
    """

    def __init__(self, world: World, board: Blackboard, lease: LeaseWatch | None) -> None:
        """`lease`: rank 0's eye on the driver's."""
        self._world = world
        self._board = board
        self._reporter = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._reporting: Future[None] | None = None
        self._listener = NoticeListener(board, world.rank)
        self._lease = lease

    def committed(self, checkpoint: CheckpointId, metrics: dict[str, Any]) -> None:
        """Give Ray a checkpoint that is committed in storage already."""
        if self._reporting is not None:
            self._reporting.result()
        self._reporting = self._reporter.submit(self._report, checkpoint, metrics)

    def busy(self) -> bool:
        """Whether Ray has not yet taken the report before."""
        return self._reporting is not None and not self._reporting.done()

    def notice(self) -> Notice | None:
        """The drain of this worker's node, or the driver's wish. Raises LeaseLostError."""
        if self._lease is not None:
            self._lease.check()
        return self._listener.notice()

    def ended(self) -> None:
        """Wait until Ray has taken the last report, but not for ever: nothing depends on it."""
        self._listener.stop()
        if self._lease is not None:
            self._lease.stop()
        try:
            if self._reporting is not None:
                self._reporting.result(timeout=REPORT_SECONDS)
        except TimeoutError:
            log.warning("Ray did not take the last report within %.0f s", REPORT_SECONDS)
        self._reporter.shutdown(wait=False)

    def _report(self, checkpoint: CheckpointId, metrics: dict[str, Any]) -> None:
        ray.train.report(
            metrics,
            checkpoint=self._as_ray(checkpoint) if self._world.rank == 0 else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def restored(self, checkpoint: CheckpointId | None) -> None:
        """Tell Ray of the checkpoint that was resumed from, if Ray's controller never heard of
        it."""
        known = ray.train.get_checkpoint()
        if checkpoint is None or (known and known.path.rstrip("/").endswith(str(checkpoint))):
            return
        self.committed(checkpoint, {"step": checkpoint.step})

    def attend(self, pulse: Heartbeat) -> None:
        """Let the board know what this worker does."""
        self._listener.attend(pulse)

    def stuck(self, doing: Activity) -> None:
        """End this process: the controller then starts all workers anew."""
        text = f"rank {self._world.rank} stood still {doing.what} after step {doing.step}"
        self._board.report_hang(text)
        os._exit(STUCK_EXIT)  # nothing gentler ends a thread that hangs in a system call

    def progress(self, progress: Progress) -> None:
        """Put rank 0's progress on the board; nobody waits for it."""
        self._board.set_progress(progress)

    def event(self, event: dict[str, Any]) -> None:
        """Put on the board what the driver should print; nobody waits for it."""
        known = parse_event(event)
        if known is not None and known.line is not None:
            self._board.print_line(known.line)

    def _as_ray(self, checkpoint: CheckpointId) -> ray.train.Checkpoint:
        storage = ray.train.get_context().get_storage()
        path = f"{storage.experiment_fs_path}/{checkpoint}"
        return ray.train.Checkpoint(path, filesystem=storage.storage_filesystem)


def train_worker(config: dict[str, Any]) -> None:
    """Ray Train's training function."""
    spec: WorkerSpec = config["spec"]
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(spec.config.workers.threads)
    store = Store.open(spec.config.storage, spec.config.name)
    require(store, spec.lease)
    feed = RayFeed(ray.train.get_dataset_shard("train"), spec.board, spec.plan, world)
    trainer.run(
        spec.config,
        world=world,
        feed=feed,
        store=store,
        host=RayHost(world, spec.board, LeaseWatch(store, spec.lease) if world.rank == 0 else None),
        order=spec.plan.order,
        device=worker_device(spec.config),
        run_id=spec.run_id,
        listing_digest=spec.listing_digest,
        nearby=cache_folder(spec.config.checkpoint.nearby, store, tempfile.gettempdir()),
        validator=RayValidator(spec.board, spec.job, spec.config, spec.resources),
    )


def worker_device(config: RunConfig) -> torch.device:
    """The device that Ray gave to this worker, or the CPU."""
    return torch.device("cpu") if config.workers.device == "cpu" else ray.train.torch.get_device()
