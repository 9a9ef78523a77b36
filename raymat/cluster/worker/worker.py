"""What every Ray Train worker does: it connects the training loop to Ray, and does nothing else."""

from __future__ import annotations

import logging
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode

from raymat.checkpoint.local_cache import cache_folder
from raymat.checkpoint.manifest import CheckpointId
from raymat.cluster.blackboard import Blackboard, Line
from raymat.cluster.ray_data_internals import tell_nobody
from raymat.cluster.worker.datasource import StreamPlan
from raymat.cluster.worker.notice_listener import NoticeListener
from raymat.cluster.worker.ray_feed import RayFeed, slots_of
from raymat.cluster.worker.ray_validator import RayValidator
from raymat.cluster.worker.worker_spec import WorkerSpec
from raymat.config.run import RunConfig
from raymat.distributed.world import World
from raymat.json_lines import LogContext, json_context, print_json
from raymat.train.loop import trainer
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.loop.watchdog import Activity, Heartbeat
from raymat.train.observability.event import Event
from raymat.train.observability.progress import Progress
from raymat.train.run.lease.lease_watch import LeaseWatch, require_holder
from raymat.train.run.notice import HeardNotice

log = logging.getLogger(__name__)

HANG_EXIT = 70
"""The exit code of a worker that ends itself because its training thread hangs."""
REPORT_SECONDS = 30.0
"""How long a worker waits at its end for Ray to take what it reported."""


class CheckpointReporter:
    """Reports committed checkpoints to Ray Train, in a thread.

    `ray.train.report` is a barrier over all ranks, so every rank calls it equally often; only rank 0 names a checkpoint.
    It returns when Ray's controller has looked, up to seconds later. Ray's own ledger is told of commits but never asked:
    what is in storage decides where a run resumes.
    """

    def __init__(self, names_checkpoint: bool) -> None:
        self._names_checkpoint = names_checkpoint
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._pending: Future[None] | None = None

    def report(self, checkpoint: CheckpointId, metrics: dict[str, Any]) -> None:
        """Report a checkpoint, once Ray has taken the one before."""
        if self._pending is not None:
            self._pending.result()
        self._pending = self._pool.submit(self._report, checkpoint, metrics)

    def busy(self) -> bool:
        """Return whether Ray has still to take the last report."""
        return self._pending is not None and not self._pending.done()

    def close(self) -> None:
        """Wait until Ray has taken the last report, but not for ever: nothing depends on it."""
        try:
            if self._pending is not None:
                self._pending.result(timeout=REPORT_SECONDS)
        except TimeoutError:
            log.warning("Ray did not take the last report within %.0f s", REPORT_SECONDS)
        self._pool.shutdown(wait=False)

    def _report(self, checkpoint: CheckpointId, metrics: dict[str, Any]) -> None:
        ray.train.report(
            metrics,
            checkpoint=self._as_ray(checkpoint) if self._names_checkpoint else None,
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def _as_ray(self, checkpoint: CheckpointId) -> ray.train.Checkpoint:
        storage = ray.train.get_context().get_storage()
        path = f"{storage.experiment_fs_path}/{checkpoint}"
        return ray.train.Checkpoint(path, filesystem=storage.storage_filesystem)


class RayHost(Host):
    """The training loop's host on Ray: it reports commits to Ray Train, and all else to the blackboard."""

    def __init__(self, rank: int, board: Blackboard, lease: LeaseWatch | None) -> None:
        """`lease`: rank 0's watch of the driver's."""
        self._rank, self._board, self._lease = rank, board, lease
        self._reporter = CheckpointReporter(names_checkpoint=rank == 0)
        self._listener = NoticeListener(board, rank)
        self._attempt: int | None = None

    def attempt_began(self, number: int) -> None:
        """Name the attempt in all that this worker has printed."""
        self._attempt = number
        if (context := json_context()) is not None:
            context.attempt = number

    def goodput(self) -> float | None:
        """Return what the driver has reckoned, as this worker heard it last."""
        return self._listener.goodput

    def restored(self, checkpoint: CheckpointId | None) -> None:
        """Report the checkpoint that was resumed from, if Ray's controller never heard of it."""
        known = ray.train.get_checkpoint()
        if checkpoint is None or (known and known.path.rstrip("/").endswith(str(checkpoint))):
            return
        self._reporter.report(checkpoint, {"step": checkpoint.step})

    def committed(self, checkpoint: CheckpointId, metrics: dict[str, Any]) -> None:
        """Report a checkpoint that is committed in storage already."""
        self._reporter.report(checkpoint, metrics)

    def busy(self) -> bool:
        """Return whether Ray has still to take the last report. Raises as `notice` does: the run's end waits here."""
        self._raise_if_lost()
        return self._reporter.busy()

    def require_lease(self) -> None:
        """Raise LeaseLostError if another driver has the run. Raises StorageError."""
        if self._lease is not None:
            self._lease.require()

    def notice(self) -> HeardNotice | None:
        """Return the drain of this worker's node, or the driver's request to leave. Raises LeaseLostError, RunGoneError."""
        self._raise_if_lost()
        return self._listener.notice()

    def progress(self, progress: Progress) -> None:
        """Show the driver rank 0's progress."""
        self._board.set_progress(progress)

    def event(self, event: Event) -> None:
        """Have the driver print the event, if people should know of it."""
        line = Line.of(event, self._attempt, self._rank)
        if line is not None:
            self._board.print_line(line)

    def register_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Show the blackboard, and this worker's log, what it does from now on."""
        self._listener.register_heartbeat(heartbeat)
        if (context := json_context()) is not None:
            context.step = lambda: heartbeat.activity().step

    def stuck(self, activity: Activity) -> None:
        """End this process: the controller then starts all workers anew."""
        text = f"rank {self._rank} stood still {activity.what} after step {activity.step}"
        self._board.report_hang(text)
        os._exit(HANG_EXIT)  # nothing gentler ends a thread that hangs in a system call

    def ended(self) -> None:
        """Stop all threads, and wait for the last report."""
        self._listener.stop()
        if self._lease is not None:
            self._lease.stop()
        self._reporter.close()

    def _raise_if_lost(self) -> None:
        if self._lease is not None:
            self._lease.raise_if_lost()


def train(spec: WorkerSpec) -> None:
    """Train as one worker."""
    run = spec.run
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    if run.config.monitoring.log_format == "json":
        print_json(LogContext(run.config.name, rank=world.rank))
    torch.set_num_threads(run.config.workers.threads)
    store = run.store
    require_holder(store, spec.lease)
    plan = StreamPlan(run.source, run.order, run.geometry)
    tell_nobody(spec.grows)
    lease = LeaseWatch(store, spec.lease) if world.rank == 0 else None
    folder = cache_folder(run.config.checkpoint.nearby, store, tempfile.gettempdir())
    trainer.run(
        run,
        Worker(world, worker_device(run.config), folder, os.environ),
        feed=RayFeed(plan, world, slots_of(world, run.config.workers.decode_tasks, spec.resources)),
        store=store,
        host=RayHost(world.rank, spec.board, lease),
        validator=RayValidator(spec.board, spec.job, run.config, spec.resources),
    )


def worker_device(config: RunConfig) -> torch.device:
    """Return the device that Ray gave to this worker, or the CPU."""
    return torch.device("cpu") if config.workers.device == "cpu" else ray.train.torch.get_device()
