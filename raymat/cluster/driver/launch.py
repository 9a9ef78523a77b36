"""From a configuration to a finished run: `fit(config)` is what the jobs, the command and a
notebook call."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import socket
import sys
import time
import uuid
from dataclasses import dataclass

import ray
import ray.train
from ray.exceptions import RayError

from raymat.cluster.blackboard import Blackboard
from raymat.cluster.controller.failure_log import FailureLog
from raymat.cluster.controller.failure_policy import RaymatFailurePolicy, raymat_error
from raymat.cluster.controller.prestart import worker_environment
from raymat.cluster.controller.scaling_policy import RaymatScalingPolicy
from raymat.cluster.driver.cluster_setup import (
    check_room,
    ray_storage,
    set_ledger_aside,
    settle,
    start_ray,
    worker_resources,
)
from raymat.cluster.driver.completion import completed_step, is_complete, stopped_early
from raymat.cluster.driver.progress_line import ProgressLine
from raymat.cluster.driver.stop_signals import StopSignals
from raymat.cluster.ray_internals import apply_settings, check_ray_version, responds
from raymat.cluster.ray_train_internals import PolicyTrainer, WorkerTorchConfig
from raymat.cluster.worker.datasource import StreamPlan, dataset_factory
from raymat.cluster.worker.notice_listener import handle_sigterm
from raymat.cluster.worker.worker import WorkerSpec, train_worker
from raymat.config.run import RunConfig, to_dict
from raymat.errors import ClusterError, ConfigError, RaymatError
from raymat.storage.store import Store
from raymat.train.observability.attempt_events import RunLaunched
from raymat.train.observability.events import EventLog
from raymat.train.run.lease.lease import Lease
from raymat.train.run.prepare import PreparedRun, prepare
from raymat.train.run.run_file import read_run

log = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class RunResult:
    """How a run ended: where it lies, its step, and whether there was anything left to do."""

    url: str
    step: int
    total_steps: int
    already_complete: bool
    stopped: str | None = None
    """Why it stopped before its length; None if it did not."""


def fit(config: RunConfig) -> RunResult:
    """Train to the end of `config`, resuming from the newest verified checkpoint.

    Joins the cluster that RAY_ADDRESS or a running one gives, or starts Ray on this machine.
    Returns when the run is complete.

    Raises:
        LeaseError: another driver has the run. RaymatError: what the user can mend, in one line
            (configuration, dataset, weights, storage, cluster).
    """
    check_ray_version()
    config = _absolute(config)
    store = Store.open(config.storage, config.name)
    if store.url.startswith("memory:"):
        raise ConfigError(
            "--storage memory:// lives in one process, a run has several: use a folder or a bucket"
        )
    _probe(store)
    with Lease.acquire(store, take_over=config.take_over, say=_say) as lease:
        return _drive(config, store, lease)


def _drive(config: RunConfig, store: Store, lease: Lease) -> RunResult:
    apply_settings()
    ours = start_ray()
    try:
        config = settle(config, read_run(store), ray.cluster_resources())
        run = prepare(config, store, lease.settle)
        _tell_changes(run, store)
        if is_complete(store, run):
            return _result(store, run, already_complete=True)
        check_room(config, ray.cluster_resources(), can_grow=ours != "started")
        _note_launch(run, store, lease)
        lease.settle()
        return _train(run, store, lease)
    finally:
        if ours != "shared":
            ray.shutdown()


def _result(store: Store, run: PreparedRun, *, already_complete: bool) -> RunResult:
    total = run.order.total_steps
    return RunResult(
        store.url, completed_step(store), total, already_complete, stopped_early(store, run)
    )


def _absolute(config: RunConfig) -> RunConfig:
    """Relative paths made absolute: workers do not run in the driver's folder."""

    def fix(url: str | None) -> str | None:
        if url is None or "://" in url or "::" in url:
            return url
        return os.path.abspath(os.path.expanduser(url))

    data = dataclasses.replace(
        config.data, dataset=fix(config.data.dataset), backgrounds=fix(config.data.backgrounds)
    )
    model = dataclasses.replace(config.model, init=fix(config.model.init))
    return dataclasses.replace(
        config, storage=fix(config.storage) or config.storage, data=data, model=model
    )


def _train(run: PreparedRun, store: Store, lease: Lease) -> RunResult:
    config = run.config
    per_worker = worker_resources(config, ray.cluster_resources())
    set_ledger_aside(store)
    head = ray.get_runtime_context().gcs_address
    board = Blackboard.start()
    stop = StopSignals(board)
    plan = StreamPlan(run.source, run.order, run.geometry)
    spec = WorkerSpec(
        config, run.run_id, run.listing_digest, plan, board, lease.name, resources=per_worker
    )
    filesystem, path = ray_storage(store)
    workers = config.workers.workers
    failures = ray.train.FailureConfig(max_failures=config.workers.max_failures)
    scaling = ray.train.ScalingConfig(
        num_workers=workers.low if workers.low == workers.high else (workers.low, workers.high),
        use_gpu=config.workers.device == "cuda",
        resources_per_worker=per_worker,
        # Without GPUs, workers on one node would take the cores that its read tasks need.
        placement_strategy="PACK" if config.workers.device == "cuda" else "SPREAD",
    )
    trainer = PolicyTrainer(
        train_worker,
        train_loop_config={"spec": spec},
        torch_config=WorkerTorchConfig(
            backend="nccl" if config.workers.device == "cuda" else "gloo",
            timeout_s=COLLECTIVE_TIMEOUT_SECONDS,
            setup=handle_sigterm,
        ),
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=failures,
            callbacks=[FailureLog(config.storage, config.name, board)],
            worker_runtime_env=worker_environment() if config.workers.spares else {},
        ),
        datasets={"train": dataset_factory(plan, board, config.workers.decode_tasks)},
        dataset_config=_data_config(),
        failure_policy=RaymatFailurePolicy(
            failures, functools.partial(completed_step, store), board
        ),
        scaling_policy=RaymatScalingPolicy(scaling, board, config.workers.spares),
    )
    try:
        with ProgressLine(board), stop, lease.telling(board.request_leave):
            trainer.fit()
    except (ray.train.TrainingFailedError, RayError) as error:
        raise stop.end_of(_end_of(error, board, head)) from error
    finally:
        board.stop()
    return _result(store, run, already_complete=False)


def _data_config() -> ray.train.DataConfig:
    options = ray.data.ExecutionOptions(preserve_order=True)
    # Locality would hand blocks to the nearest worker instead of the one whose share they are.
    return ray.train.DataConfig(execution_options=options, enable_shard_locality=False)


def _probe(store: Store) -> None:
    """Raise StorageError now, not at the first checkpoint, where the storage cannot be written."""
    path = f"events/.probe-{uuid.uuid4().hex}"
    store.write(path, b"")
    store.delete([path])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _tell_changes(run: PreparedRun, store: Store) -> None:
    for change in run.changes:
        _say(change.line)
        if change.event is not None:
            EventLog.for_driver(store).emit(change.event)


def _note_launch(run: PreparedRun, store: Store, lease: Lease) -> None:
    """Write an event that says who drives, from where, and with which configuration."""
    launch = RunLaunched(
        pid=os.getpid(),
        host=socket.gethostname(),
        lease=lease.name,
        resumed=run.resumed,
        config=to_dict(run.config),
    )
    EventLog.for_driver(store).emit(launch)


def _end_of(error: BaseException, board: Blackboard, head: str) -> RaymatError:
    """Why training ended, for the user: what raymat raised, that the cluster's `head` (HOST:PORT) is gone, or why the
    controller gave up."""
    raised = raymat_error(error)
    if raised is not None:
        return raised
    if not responds(head):
        return ClusterError(
            f"the head of the Ray cluster, {head}, does not answer any more: when it is back, give the same command "
            "again, and the run goes on from its newest checkpoint"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else repr(error)
    verdict = board.verdict()
    return ClusterError(f"training failed after its restarts: {verdict or last}")


def summary(result: RunResult, seconds: float) -> str:
    """The last line of a job."""
    how = "nothing to do" if result.already_complete else f"after {seconds:.0f} s"
    where = f"step {result.step} of {result.total_steps}"
    if result.stopped:
        where = f"stopped early at {where}, since {result.stopped}"
    return f"{result.url} is complete: {where}, {how}"


def timed_fit(config: RunConfig) -> str:
    """`fit`, and its last line."""
    start = time.monotonic()
    return summary(fit(config), time.monotonic() - start)
