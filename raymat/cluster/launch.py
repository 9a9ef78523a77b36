"""From a configuration to a finished run: `fit(config)` is what the jobs, the command and a
notebook call."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import socket
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import fsspec
import pyarrow.fs
import ray
import ray.train
from ray.exceptions import RayError

from raymat.checkpoint.find import newest, newest_extra, scan
from raymat.checkpoint.store import Store
from raymat.cluster import board as boards
from raymat.cluster.health import answers
from raymat.cluster.ingest import StreamPlan, dataset_factory
from raymat.cluster.progress import ProgressLine
from raymat.cluster.spares import worker_environment
from raymat.cluster.stop import StopSignals
from raymat.cluster.trainer import (
    MindingTorchConfig,
    RaymatTrainer,
    apply_settings,
    check_ray_version,
    raymat_error,
)
from raymat.cluster.watch import FailureLog
from raymat.cluster.worker import WorkerSpec, train_worker
from raymat.config import RunConfig, from_dict, to_dict
from raymat.errors import ClusterError, ConfigError, RaymatError
from raymat.train.events import EventLog
from raymat.train.lease import Lease
from raymat.train.prepare import PreparedRun, prepare, read_run
from raymat.train.state import stopped_in

log = logging.getLogger(__name__)

LEDGER = "checkpoint_manager_snapshot.json"
OBJECT_STORE_BYTES = 2 * 2**30
COLLECTIVE_TIMEOUT_SECONDS = 600


@dataclass(frozen=True)
class Result:
    """How a run ended: where it lies, its step, and whether there was anything left to do."""

    url: str
    step: int
    total_steps: int
    already_complete: bool
    stopped: str | None = None
    """Why it stopped before its length; None if it did not."""


def fit(config: RunConfig) -> Result:
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


def _drive(config: RunConfig, store: Store, lease: Lease) -> Result:
    apply_settings()
    ours = _start_ray()
    try:
        config = settle(config, read_run(store), ray.cluster_resources())
        run = prepare(config, store, lease.settle)
        _tell_changes(run, store)
        if is_complete(store, run):
            return _result(store, run, already_complete=True)
        _check_room(config, ray.cluster_resources(), can_grow=ours != "started")
        _note_launch(run, store, lease)
        lease.settle()
        return _train(run, store, lease)
    finally:
        if ours != "shared":
            ray.shutdown()


def settle(
    config: RunConfig, stored: dict[str, Any] | None, resources: dict[str, float]
) -> RunConfig:
    """Decide what `auto` leaves open: as the run began, or from what the cluster has.

    Raises:
        ConfigError: a precision that the device does not have, or nothing to decide by.
    """
    begun = from_dict(stored["config"]) if stored else None
    device = config.workers.device
    if device == "auto" and begun is not None:
        device = begun.workers.device
    elif device == "auto":
        if not resources.get("CPU") and not resources.get("GPU"):
            raise ConfigError(
                "--device auto: the cluster has no worker node yet to tell by; "
                "say --device cuda or --device cpu"
            )
        device = "cuda" if resources.get("GPU", 0) > 0 else "cpu"
    precision = config.optim.precision or (begun.optim.precision if begun else None)
    precision = precision or ("fp16" if device == "cuda" else "fp32")
    if precision == "fp16" and device == "cpu":
        raise ConfigError("--precision fp16 needs a GPU: use bf16 or fp32 on the CPU")
    return dataclasses.replace(
        config,
        workers=dataclasses.replace(config.workers, device=device),
        optim=dataclasses.replace(config.optim, precision=precision),
    )


def is_complete(store: Store, run: PreparedRun) -> bool:
    """Whether a checkpoint verifies that is at or past the run's last step, or at which it stopped
    early. Read only where one is listed: a run that is to be called complete is believed no more than
    one that is to go on."""
    total = run.order.total_steps
    if completed_step(store) < total and not stopped_early(store, run):
        return False
    found = newest(store, run.run_id)
    if found is None:
        return False
    checkpoint, snapshot = found
    return checkpoint.step >= total or _verdict(run, snapshot.extra) is not None


def stopped_early(store: Store, run: PreparedRun) -> str | None:
    """Why the run's newest checkpoint is its last one, though before its length; None if it is not."""
    if not run.config.length.early_stop_patience:
        return None  # and nothing is read
    return _verdict(run, newest_extra(store, scan(store)))


def _verdict(run: PreparedRun, extra: Mapping[str, Any]) -> str | None:
    """Why a run whose checkpoint holds `extra` has stopped before its length, if it has."""
    if not extra or extra["step"] >= run.order.total_steps:
        return None
    return stopped_in(extra, run.config, run.order.past)


def _result(store: Store, run: PreparedRun, *, already_complete: bool) -> Result:
    total = run.order.total_steps
    return Result(
        store.url, completed_step(store), total, already_complete, stopped_early(store, run)
    )


def completed_step(store: Store) -> int:
    """The step of the newest checkpoint that a listing shows as committed, 0 where there is none."""
    return max((s.id.step for s in scan(store) if s.state == "committed"), default=0)


def worker_resources(config: RunConfig, resources: dict[str, float]) -> dict[str, float]:
    """What one worker asks of Ray. On a CPU cluster half of the cores stay for decoding."""
    if config.workers.device == "cuda":
        return {"CPU": 1, "GPU": 1}
    share = resources.get("CPU", 1) / (2 * config.workers.workers.high)
    return {"CPU": max(0.01, min(1.0, math.floor(share * 100) / 100))}


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


def _start_ray() -> Literal["shared", "joined", "started"]:
    """Use the Ray of this process, join the cluster there is, or start one on this machine; says
    which."""
    if ray.is_initialized():
        return "shared"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if os.environ.get("RAY_ADDRESS") != "local":
        try:
            ray.init(address="auto", **quiet)
            return "joined"
        except ConnectionError:
            if "RAY_ADDRESS" in os.environ:
                raise ClusterError(
                    f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']}: start it, "
                    "or unset RAY_ADDRESS to run on this machine alone"
                ) from None
    ray.init(
        address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet
    )
    return "started"


def _train(run: PreparedRun, store: Store, lease: Lease) -> Result:
    config = run.config
    per_worker = worker_resources(config, ray.cluster_resources())
    _set_ledger_aside(store)
    head = ray.get_runtime_context().gcs_address
    board = boards.create()
    stop = StopSignals(board)
    plan = StreamPlan(run.source, run.order, run.geometry)
    spec = WorkerSpec(
        config, run.run_id, run.listing_digest, plan, board, lease.name, resources=per_worker
    )
    filesystem, path = _ray_storage(store)
    workers = config.workers.workers
    trainer = RaymatTrainer(
        train_worker,
        train_loop_config={"spec": spec},
        torch_config=MindingTorchConfig(
            backend="nccl" if config.workers.device == "cuda" else "gloo",
            timeout_s=COLLECTIVE_TIMEOUT_SECONDS,
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.low if workers.low == workers.high else (workers.low, workers.high),
            use_gpu=config.workers.device == "cuda",
            resources_per_worker=per_worker,
            # Without GPUs, workers on one node would take the cores that its read tasks need.
            placement_strategy="PACK" if config.workers.device == "cuda" else "SPREAD",
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.workers.max_failures),
            callbacks=[FailureLog(config.storage, config.name, board)],
            worker_runtime_env=worker_environment() if config.workers.spares else {},
        ),
        datasets={"train": dataset_factory(plan, board, config.workers.decode_tasks)},
        dataset_config=_data_config(),
        newest_step=functools.partial(completed_step, store),
        board=board,
        spares=config.workers.spares,
    )
    try:
        with ProgressLine(board), stop, lease.telling(board.set_wish.remote):
            trainer.fit()
    except (ray.train.TrainingFailedError, RayError) as error:
        raise stop.end_of(_end_of(error, board, head)) from error
    finally:
        ray.kill(board)
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
        if change.fields:
            EventLog.for_driver(store).emit(change.kind, **change.fields)


def _note_launch(run: PreparedRun, store: Store, lease: Lease) -> None:
    """An event that says who drives, from where, and with which configuration."""
    EventLog.for_driver(store).emit(
        "launch",
        pid=os.getpid(),
        host=socket.gethostname(),
        lease=lease.name,
        resumed=run.resumed,
        config=to_dict(run.config),
    )


def _check_room(config: RunConfig, resources: dict[str, float], can_grow: bool) -> None:
    """Say at once what Ray would wait for without a word.

    Raises:
        ClusterError: a cluster that cannot grow has no room for the smallest number of workers.
    """
    workers = config.workers.workers.low
    for name, each in worker_resources(config, resources).items():
        need, have = each * workers, resources.get(name, 0)
        if have >= need:
            continue
        short = f"{workers} workers need {need:g} {name}, the cluster has {have:g}"
        if not can_grow:
            raise ClusterError(f"{short}: use fewer --workers or a larger machine")
        print(f"waiting for nodes: {short}", file=sys.stderr, flush=True)


def _set_ledger_aside(store: Store) -> None:
    """Remove Ray's ledger of an earlier start: damaged, foreign or naming what is gone, it would
    stop the controller."""
    store.delete([f"checkpoints/{LEDGER}"])


def _ray_storage(store: Store) -> tuple[Any, str]:
    """The run's folder as Ray wants it: a pyarrow filesystem and a path without a scheme."""
    filesystem, path = fsspec.core.url_to_fs(store.url)
    if "file" in filesystem.protocol:
        return None, path
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


def _end_of(error: BaseException, board: Any, head: str) -> RaymatError:
    """Why training ended, for the user: what raymat raised, that the cluster's `head` (HOST:PORT) is gone, or why the
    controller gave up."""
    raised = raymat_error(error)
    if raised is not None:
        return raised
    if not answers(head):
        return ClusterError(
            f"the head of the Ray cluster, {head}, does not answer any more: when it is back, give the same command "
            "again, and the run goes on from its newest checkpoint"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else repr(error)
    verdict = boards.ask(board.verdict.remote(), None)
    return ClusterError(f"training failed after its restarts: {verdict or last}")


def summary(result: Result, seconds: float) -> str:
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
