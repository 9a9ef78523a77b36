"""The trainer that a driver hands to Ray Train: a run's workers, policies and storage."""

from __future__ import annotations

import functools

import pyarrow.fs
import ray
import ray.train

from raymat.cluster.blackboard import Blackboard
from raymat.cluster.controller.failure_log import FailureLog
from raymat.cluster.controller.failure_policy import RaymatFailurePolicy
from raymat.cluster.controller.prestart import worker_environment
from raymat.cluster.controller.room_log import RoomLog
from raymat.cluster.controller.scaling_policy import RaymatScalingPolicy
from raymat.cluster.driver.cluster_setup import worker_resources
from raymat.cluster.driver.ray_files import RayFiles
from raymat.cluster.ray_train_internals import PolicyTrainer, WorkerTorchConfig
from raymat.cluster.worker.entry import train_worker
from raymat.cluster.worker.notice_listener import handle_sigterm
from raymat.cluster.worker.worker_spec import WorkerSpec
from raymat.config.run import RunConfig
from raymat.train.run.open_run import OpenedRun
from raymat.train.run.run_status import read_committed_step

COLLECTIVE_TIMEOUT_SECONDS = 600


def build_trainer(run: OpenedRun, board: Blackboard, lease: str, own: bool) -> PolicyTrainer:
    """Make the trainer of an opened run.

    Args:
        lease: the name of the driver's, without which workers must not train.
        own: whether this Ray was started for the run, on this machine alone.
    """
    workers = run.config.workers
    per_worker = worker_resources(run.config, ray.cluster_resources())
    scaling = _scaling(run.config, per_worker)
    failures = ray.train.FailureConfig(max_failures=workers.max_failures)
    rooms = RoomLog(run.store, workers.workers.low)
    newest_step = functools.partial(read_committed_step, run.store)
    return PolicyTrainer(
        train_worker,
        train_loop_config={"spec": WorkerSpec(run, board, lease, per_worker, grows=not own)},
        backend_config=WorkerTorchConfig(
            backend="nccl" if workers.device == "cuda" else "gloo",
            timeout_s=COLLECTIVE_TIMEOUT_SECONDS,
            setup=handle_sigterm,
        ),
        scaling_config=scaling,
        run_config=_ray_run(run, board, failures),
        failure_policy=RaymatFailurePolicy(failures, newest_step, board),
        scaling_policy=RaymatScalingPolicy(scaling, board, rooms, workers.spares, grows=not own),
        outlived=not own,
    )


def _scaling(config: RunConfig, per_worker: dict[str, float]) -> ray.train.ScalingConfig:
    workers, cuda = config.workers.workers, config.workers.device == "cuda"
    return ray.train.ScalingConfig(
        num_workers=workers.low if workers.low == workers.high else (workers.low, workers.high),
        use_gpu=cuda,
        resources_per_worker=per_worker,
        # Without GPUs, workers on one node would take the cores that its read tasks need.
        placement_strategy="PACK" if cuda else "SPREAD",
    )


def _ray_run(
    run: OpenedRun, board: Blackboard, failures: ray.train.FailureConfig
) -> ray.train.RunConfig:
    return ray.train.RunConfig(
        name="checkpoints",
        storage_path=run.store.root,
        storage_filesystem=pyarrow.fs.PyFileSystem(RayFiles(run.store)),
        failure_config=failures,
        callbacks=[FailureLog(run.store, board)],
        worker_runtime_env=worker_environment() if run.config.workers.spares else {},
    )
