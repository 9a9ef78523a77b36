"""From a configuration to a finished run: `fit(config)` is what the jobs, the command and a notebook call."""

from __future__ import annotations

import dataclasses
import functools
import os
import socket
import time
from dataclasses import dataclass

import ray
import ray.train
from ray.exceptions import ActorDiedError, RayError

from raymat.analysis.preflight.first_look import first_look
from raymat.checkpoint.catalog import scan
from raymat.cluster.blackboard import Blackboard
from raymat.cluster.controller.failure_policy import raymat_error
from raymat.cluster.controller.prestart import start_ahead
from raymat.cluster.driver.cluster_setup import (
    check_room,
    require_room,
    resolve_auto,
    running_ray,
)
from raymat.cluster.driver.goodput_meter import GoodputMeter
from raymat.cluster.driver.machine_watch import MachineWatch
from raymat.cluster.driver.object_store import check_store, own_store_bytes
from raymat.cluster.driver.progress_line import ProgressLine
from raymat.cluster.driver.ray_watch import AGAIN, ENDING_SECONDS, RayWatch
from raymat.cluster.driver.run_summary import closing, first_progress, opening
from raymat.cluster.driver.say import say, waiting_for, warn
from raymat.cluster.driver.stop_signals import StopSignals
from raymat.cluster.driver.trainer_setup import build_trainer
from raymat.cluster.monitoring.notifier import Notifier
from raymat.cluster.monitoring.run_metrics import MetricsExporter
from raymat.cluster.nodes import metrics_url
from raymat.cluster.ray_internals import check_ray_version, in_job_folder
from raymat.config.run import RunConfig, to_dict
from raymat.errors import ClusterError, ConfigError, RayLostError, RaymatError
from raymat.json_lines import (
    LogContext,
    json_context,
    output_as_before,
    print_json,
)
from raymat.storage.store import Store, require_writable
from raymat.storage.urls import delete_right, redact, shown_urls
from raymat.train.observability.attempt_events import RunLaunched
from raymat.train.observability.checkpoint_events import NothingDeleted
from raymat.train.observability.events import EventLog
from raymat.train.run.lease.lease import Lease
from raymat.train.run.open_run import OpenedRun, Resolve, Survey, open_run, survey_run
from raymat.train.run.run_file import anchor_run, mend_run_file, require_portable_name
from raymat.train.run.run_status import RunStatus, read_status


@dataclass(frozen=True)
class RunResult:
    """How a run ended: where it lies, its step, and whether there was anything left to do."""

    url: str
    step: int
    total_steps: int
    already_complete: bool
    stopped: str | None = None
    """Why it stopped before its length; None if it did not."""
    report: str = ""
    """What came of it and what to do next, as lines for people."""
    substitutes: int = 0
    """Examples trained with a substitute for a picture that cannot be read."""


def fit(config: RunConfig) -> RunResult:
    """Train to the end of `config`, resuming from the newest verified checkpoint.

    Joins the cluster that RAY_ADDRESS names or that `ray start` started on this machine, else starts a Ray of its own.
    Returns when the run is complete.

    Raises:
        LeaseError: another driver has the run. RaymatError: what the user can mend, in one line (configuration, dataset,
            weights, storage, cluster).
    """
    check_ray_version()
    config = absolute_paths(config)
    with output_as_before(), Notifier.of(config, warn) as notifier:
        _choose_output(config)
        store = _open_storage(config)
        notifier.found(redact(store.url))
        result = _fit(config, store, notifier)
        if not result.already_complete:
            notifier.ended(summary(result))
        return result


def _fit(config: RunConfig, store: Store, notifier: Notifier) -> RunResult:
    resolve = functools.partial(resolve_auto, resources=ray.cluster_resources)
    with Lease.acquire(store, take_over=config.take_over, say=say) as lease:
        survey = _survey(config, store, resolve, lease)
        opened = _open(config, store, resolve, lease, survey) if survey.at_end else None
        if opened is not None and opened.complete:  # Ray would start for nothing
            return _result(opened, opened.status, already_complete=True)
        with running_ray(own_store_bytes(config), config.monitoring.metrics_port) as watch:
            if watch.own and config.workers.spares:
                start_ahead(config.workers.workers.low)
            if watch.own and survey.stored is None:
                # Before run.json fixes the precision of a device that is not here.
                require_room(resolve(survey.config, None), ray.cluster_resources())
            run = opened or _open(config, store, resolve, lease, survey)
            return _drive(run, lease, watch, notifier)


def _open(
    config: RunConfig, store: Store, resolve: Resolve, lease: Lease, survey: Survey
) -> OpenedRun:
    run = open_run(config, store, resolve=resolve, tenure=lease, survey=survey)
    anchor_run(store, run.run_id, lease.name)
    _report_changes(run)
    _report_rights(run.store)
    return run


def _choose_output(config: RunConfig) -> None:
    """Print JSON if the run's options say so; the command may have begun to already."""
    if config.monitoring.log_format == "json":
        print_json(LogContext())
    if (context := json_context()) is not None:
        context.run = config.name


def _drive(run: OpenedRun, lease: Lease, watch: RayWatch, notifier: Notifier) -> RunResult:
    """Train an opened run to its end, unless nothing is left to do."""
    store = run.store
    if run.complete:
        return _result(run, run.status, already_complete=True)
    source = run.source.open()
    metrics = metrics_url() if watch.own else None
    for line in (opening(run, source, metrics), *first_look(run.config, source)):
        say(line)
    check_room(run.config, can_grow=not watch.own)
    check_store(run.config, ray.cluster_resources())
    _report_launch(run, lease)
    lease.wait_until_alone()
    _train(run, lease, watch, notifier)
    mend_run_file(store, lease)
    status = read_status(store, run.config, run.order, scan(store))
    return _result(run, status, already_complete=False)


def _train(run: OpenedRun, lease: Lease, watch: RayWatch, notifier: Notifier) -> None:
    """Train until the workers return, and raise what ends the run otherwise."""
    board = Blackboard.start()
    signals = StopSignals(board)
    try:
        trainer = build_trainer(run, board, lease.name, watch.own)
        machines = MachineWatch(board, run.store)
        goodput = GoodputMeter(run.store, tell=board.set_goodput)
        observers = (notifier.look, MetricsExporter(run.config).look)
        line = ProgressLine(board, first_progress(run), goodput=goodput, observers=observers)
        with goodput, line, machines, signals, lease.calling(board.request_leave):
            watch.call(trainer.fit)
    except (ray.train.TrainingFailedError, RayError) as error:
        raise signals.explain(_explain(error, board, watch)) from error
    finally:
        if not watch.lost:
            board.stop()


def absolute_paths(config: RunConfig) -> RunConfig:
    """Make relative paths absolute: workers do not run in the driver's folder."""

    def fix(url: str | None) -> str | None:
        if url is None or "\n" in url:
            return url and "\n".join(filter(None, map(fix, url.split("\n"))))
        if "://" in url or "::" in url:
            return url
        return os.path.abspath(os.path.expanduser(url))

    data = dataclasses.replace(
        config.data, dataset=fix(config.data.dataset), backgrounds=fix(config.data.backgrounds)
    )
    model = dataclasses.replace(config.model, init=fix(config.model.init))
    return dataclasses.replace(
        config, storage=fix(config.storage) or config.storage, data=data, model=model
    )


def _open_storage(config: RunConfig) -> Store:
    """Open the run's storage; raise now, not at the first checkpoint, where it cannot be written."""
    store = Store.open(config.storage, config.name)
    if store.url.startswith("memory:"):
        raise ConfigError(
            "--storage memory:// lives in one process, a run has several: use a folder or a bucket"
        )
    if in_job_folder(store.root):
        raise ConfigError(
            f"--storage {config.storage} lies in the copy of the project that Ray made for this job, and goes with it: "
            "give a bucket, or the absolute path of a folder that every machine sees"
        )
    with waiting_for(f"an answer from {store.url}"):
        require_portable_name(store, config.name)
        require_writable(store)
    return store


def _survey(config: RunConfig, store: Store, resolve: Resolve, lease: Lease) -> Survey:
    """Find out what is wrong before Ray starts, which takes longer than all this."""
    if config.data.dataset is None:
        what = f"{store.url} to be read"
    else:
        what = f"{shown_urls(config.data.dataset)} to be listed"
    if config.model.init is not None:
        what += f" and {redact(config.model.init)} to be read"
    with waiting_for(what):
        survey = survey_run(config, store, resolve=resolve, tenure=lease)
    if survey.stored is None and config.workers.device != "auto":
        resolve(config, None)  # raises for a precision that the device does not have
    return survey


def _report_changes(run: OpenedRun) -> None:
    for change in run.changes:
        say(change.line)
        if change.event is not None:
            EventLog.for_driver(run.store).emit(change.event)


def _report_rights(store: Store) -> None:
    if not store.may_delete:
        event = NothingDeleted(right=delete_right(store.url))
        say(event.line)
        EventLog.for_driver(store).emit(event)


def _report_launch(run: OpenedRun, lease: Lease) -> None:
    """Write an event that says who drives, from where, and with which configuration."""
    launch = RunLaunched(
        pid=os.getpid(),
        host=socket.gethostname(),
        lease=lease.name,
        resumed=run.resumed,
        config=to_dict(run.config),
        heard=lease.heard,
    )
    EventLog.for_driver(run.store).emit(launch)


def _result(run: OpenedRun, status: RunStatus, *, already_complete: bool) -> RunResult:
    total = run.order.total_steps
    return RunResult(
        run.store.url,
        status.step,
        total,
        already_complete,
        status.stopped,
        report=closing(run.config, run.store, status.validations),
        substitutes=status.substitutes,
    )


def _explain(error: BaseException, board: Blackboard, watch: RayWatch) -> RaymatError:
    """Tell the user why training ended: what raymat raised, that Ray is gone, or why the controller gave up."""
    raised = raymat_error(error)
    if raised is not None:
        return raised
    controller_died = isinstance(error, ActorDiedError)  # no worker's: it is the one to see those
    try:
        watch.raise_if_gone(ENDING_SECONDS if controller_died else 0.0)
    except RayLostError as lost:
        return lost
    if controller_died:
        return ClusterError(f"the actor of Ray Train's controller died: {AGAIN}")
    lines = [line for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else repr(error)
    return ClusterError(f"training failed after its restarts: {board.verdict() or last}")


def summary(result: RunResult, seconds: float | None = None) -> str:
    """Return the line that says that a run is complete. `seconds`: what it took now, if that is to be said."""
    after = "" if seconds is None else f", after {seconds:.0f} s"
    how = ", nothing to do" if result.already_complete else after
    where = f"step {result.step} of {result.total_steps}"
    if result.stopped:
        where = f"stopped early at {where}, since {result.stopped}"
    if result.substitutes:
        where += (
            f", {result.substitutes:,} examples with a substitute for a picture that cannot be read"
        )
    return f"{result.url} is complete: {where}{how}"


def timed_fit(config: RunConfig) -> str:
    """Train as `fit` does, and return the last lines of the job."""
    start = time.monotonic()
    result = fit(config)
    return f"{summary(result, time.monotonic() - start)}\n{result.report}".rstrip()
