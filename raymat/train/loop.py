"""The training loop: from the newest checkpoint to the end of the run, complete without Ray.

It is handed batches (Feed), a store, and somebody to tell (Host). What must be equal on all workers is decided by rank
0 and broadcast, or follows from sums that all of them share; collectives stand at the same place of every step.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import RetentionPolicy
from raymat.checkpoint.store import Store
from raymat.config import RunConfig
from raymat.data.batch import MicroBatch
from raymat.data.order import Cursor, SampleOrder, digest_lanes, digest_text
from raymat.errors import RaymatError, TrainingError
from raymat.model.matting import build
from raymat.train.attempt import Attempt, begin_attempt
from raymat.train.events import EventLog
from raymat.train.group import Group
from raymat.train.health import HealthWatch
from raymat.train.images import training_grids
from raymat.train.initial import initialise_from
from raymat.train.logger import Logger
from raymat.train.metrics import MetricsLog
from raymat.train.precision import settled
from raymat.train.progress import Progress
from raymat.train.replaced import ReplacementReport
from raymat.train.restore import restore
from raymat.train.saving import BlockingSaver, retain
from raymat.train.schedule import Schedule, rates
from raymat.train.seams import Feed, Host
from raymat.train.state import Promise, Record, Validation
from raymat.train.step import StepResult, TrainStep
from raymat.train.validation import finite, validate
from raymat.world import World


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How `run` ended."""

    step: int
    """Completed steps: the run's total."""
    checkpoint: CheckpointId
    """The newest one: of the last step."""
    best: Validation | None
    """The validation with the lowest loss."""
    attempt: int
    already_complete: bool
    """Whether there was nothing left to do."""


def run(
    config: RunConfig,
    *,
    world: World,
    feed: Feed,
    store: Store,
    host: Host,
    order: SampleOrder,
    device: torch.device,
    run_id: str,
    listing_digest: str,
) -> Outcome:
    """Train to the end of the run, from its newest verified checkpoint or from the start. Called by all workers.

    `torch.distributed` must be initialised if `world` is larger than 1. Sets this process's number of threads, which
    the last bits of every sum depend on.

    Raises:
        ConfigError, DataError: the run was begun with another configuration or dataset, or cannot be trained.
        WeightsError: `--init` cannot be used. StorageError: storage fails. TrainingError: training diverged.
    """
    schedule = Schedule.of(config, order)
    optim = dataclasses.replace(config.optim, precision=settled(config.optim.precision, device))
    config = dataclasses.replace(config, optim=optim)
    torch.set_num_threads(config.workers.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = Group(world, device)
    attempt = begin_attempt(
        store, group, stage=config.stage, total_steps=schedule.total_steps, device=device.type
    )
    with _TellFailure(attempt.events):
        promise = Promise(config, listing_digest)
        training = _Training(config, schedule, order, group, feed, store, host, attempt)
        return training.run(run_id, promise, device)


class _TellFailure:
    """Writes an `end` event for whatever ends the block before its time; raises it on."""

    def __init__(self, events: EventLog) -> None:
        self._events = events

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            text = error.line if isinstance(error, RaymatError) else str(error).split("\n")[0]
            self._events.emit("end", outcome="failed", error=f"{type(error).__name__}: {text}")


class _Training:
    """One worker's part in one attempt."""

    def __init__(
        self,
        config: RunConfig,
        schedule: Schedule,
        order: SampleOrder,
        group: Group,
        feed: Feed,
        store: Store,
        host: Host,
        attempt: Attempt,
    ) -> None:
        self.config, self.schedule, self.order = config, schedule, order
        self.group, self.feed, self.store, self.host = group, feed, store, host
        self.attempt, self.events = attempt, attempt.events
        self.loggers = _loggers(store, attempt.number) if group.leads else []
        self.replaced = ReplacementReport(attempt.events)
        self.damaged: set[CheckpointId] = set()
        self.committed: CheckpointId | None = None
        self.commit_time: float | None = None
        self.loss: float | None = None
        self.record = Record()
        self.began, self.trained = time.monotonic(), False
        self.pace = _Pace()

    def run(self, run_id: str, promise: Promise, device: torch.device) -> Outcome:
        self.watch = HealthWatch(self.config.optim.max_bad_steps, device)
        self.step = self._build(device)
        self._restore(run_id, promise)
        self.saver = BlockingSaver(
            self.store,
            self.group,
            run_id=run_id,
            attempt=self.attempt.number,
            promise=promise,
            loggers=self.loggers,
        )
        complete = self.record.step >= self.schedule.total_steps
        while self.record.step < self.schedule.total_steps:
            self._segment(self.schedule.segment_end(self.record.step))
        return self._end(complete)

    # Before the first step.

    def _build(self, device: torch.device) -> TrainStep:
        config = self.config
        assert config.optim.precision is not None
        return TrainStep(
            build(config.stage, config.model, config.data.seed),
            stage=config.stage,
            precision=config.optim.precision,
            seed=config.data.seed,
            resolution=config.data.resolution,
            world=self.group.world,
            device=device,
        )

    def _restore(self, run_id: str, promise: Promise) -> None:
        began = time.monotonic()
        checkpoint, self.record = restore(
            self.step,
            self.store,
            self.group,
            run_id=run_id,
            promise=promise,
            schedule=self.schedule,
            on_skip=self._skipped,
        )
        self.watch.in_a_row = self.record.bad_steps
        if checkpoint is not None:
            self._restored(checkpoint, time.monotonic() - began)
        else:
            self._initialise(self.config.model.init)
        for logger in self.loggers:
            logger.resumed(self.record.step)
        self.host.restored(checkpoint)

    def _skipped(self, checkpoint: CheckpointId, reason: str) -> None:
        self.damaged.add(checkpoint)
        self.events.emit("skip", checkpoint=str(checkpoint), step=checkpoint.step, reason=reason)

    def _restored(self, checkpoint: CheckpointId, seconds: float) -> None:
        self.committed, self.commit_time = checkpoint, time.time()
        if self.group.leads:
            self.events.emit(
                "restore", checkpoint=str(checkpoint), step=checkpoint.step, seconds=seconds
            )

    def _initialise(self, url: str | None) -> None:
        self.step.share_weights()
        if url is None:
            return
        report = initialise_from(self.step.network, url, self.group)
        if self.group.leads:
            print(report.summary, file=sys.stderr, flush=True)
            self.events.emit("init", url=url, summary=report.summary)

    # Steps.

    def _segment(self, end: int) -> None:
        """Train up to completed step `end`, where the feed is closed: for a validation, or because the run ends."""
        for batch in self.feed.train(self.record.step, end):
            self._train(batch)
            if self.record.step < end:
                self._boundary()
        if self.record.step != end:
            raise TrainingError(
                f"the feed ended before step {self.record.step}, expected it up to step {end - 1}"
            )
        self._boundary()

    def _train(self, batch: MicroBatch) -> None:
        if batch.step != self.record.step:
            raise TrainingError(f"the feed gave step {batch.step}, expected {self.record.step}")
        self.replaced.see(batch)
        numbers = self.order.step_numbers(batch.step)
        rate = rates(self.config.optim, self.record.cursor.next_example)
        done = batch.step + 1
        pictures = self.group.leads and self.schedule.draws_images(done)
        result = self.step(batch, len(numbers), rate, pictures)
        self.record.step, self.record.cursor = done, Cursor(self.schedule.examples(done))
        self._check_health(self.watch.push(done, numbers, result.health))
        self._tell_first_step()
        if result.pictures is not None:
            self._log_images(result.pictures)
        if self.schedule.logs(done):
            self._log_row(batch, result, rate)

    def _tell_first_step(self) -> None:
        """What a restart cost ends here."""
        if not self.trained and self.group.leads:
            seconds = time.monotonic() - self.began
            self.events.emit("first_step", step=self.record.step, seconds=seconds)
        self.trained = True

    def _check_health(self, found: list[Any]) -> None:
        if self.group.leads:
            for bad in found:
                self.events.emit("nonfinite", **bad.fields())
        self.watch.refuse()

    def _log_images(self, pictures: dict[str, torch.Tensor]) -> None:
        grids = training_grids(pictures)
        for logger in self.loggers:
            logger.images(self.record.step, grids)

    def _log_row(self, batch: MicroBatch, result: StepResult, rate: dict[str, float]) -> None:
        """A training row: the one collective of a logged step."""
        lanes = digest_lanes(batch.examples).tolist()
        total, count, *summed = self.group.sums([result.loss_sum, float(result.count), *lanes])
        self.loss = finite(total / count)
        self._row("train", loss=self.loss, digest=digest_text(summed), lr=rate)
        self._progress()

    def _row(self, kind: str, **fields: Any) -> None:
        step = self.record.step
        place = {
            "kind": kind,
            "step": step,
            "examples": self.schedule.examples(step),
            "epoch": self.schedule.epoch(step),
            "time": time.time(),
        }
        for logger in self.loggers:
            logger.row(place | fields)

    # Between steps: validation, then the checkpoint that holds its result.

    def _boundary(self) -> None:
        if self.schedule.validates(self.record.step):
            self._validate()
        if self.schedule.commits(self.record.step):
            self._commit()

    def _validate(self) -> None:
        began = time.monotonic()
        result = validate(self.step, self.feed, self.group, self.replaced.see)
        self.record.validations.append(Validation(self.record.step, result.loss))
        self._row("valid", loss=result.loss, digest=result.digest, count=result.count)
        if self.group.leads:
            seconds = time.monotonic() - began
            self.events.emit("validation", step=self.record.step, loss=result.loss, seconds=seconds)

    def _commit(self) -> None:
        self._check_health(self.watch.drain())
        self.record.bad_steps = self.watch.in_a_row
        commit = self.saver.save(self.step, self.record)
        self.committed, self.commit_time = commit.checkpoint, time.time()
        if self.group.leads:
            self.events.emit(
                "commit",
                checkpoint=str(commit.checkpoint),
                step=self.record.step,
                seconds=commit.seconds,
                bytes=commit.bytes,
            )
        self.host.committed(commit.checkpoint, self._metrics())
        if self.group.leads:
            policy = RetentionPolicy(keep=self.config.checkpoint.keep, best="min")
            retain(self.store, policy, self.record, self.attempt.number, self.damaged)
        self._progress()

    def _metrics(self) -> dict[str, Any]:
        """What a host is told with a commit: step, examples, and the newest losses."""
        found: dict[str, Any] = {
            "step": self.record.step,
            "examples": self.record.cursor.next_example,
        }
        newest = self.record.validations[-1:]
        losses = {"loss": self.loss, "valid_loss": newest[0].loss if newest else None}
        return found | {name: value for name, value in losses.items() if value is not None}

    def _progress(self) -> None:
        if not self.group.leads:
            return
        examples = self.record.cursor.next_example
        newest = self.record.validations[-1:]
        self.host.progress(
            Progress(
                stage=self.config.stage,
                step=self.record.step,
                total_steps=self.schedule.total_steps,
                examples_left=self.schedule.total_examples - examples,
                examples_per_second=self.pace.measure(examples),
                loss=self.loss,
                valid_loss=newest[0].loss if newest else None,
                commit_step=self.committed.step if self.committed else None,
                commit_time=self.commit_time,
                world=self.group.world.size,
                attempt=self.attempt.number,
            )
        )

    def _end(self, already_complete: bool) -> Outcome:
        (replaced,) = self.group.sums([float(self.replaced.count)])
        if self.group.leads:
            self.events.emit(
                "end", outcome="complete", step=self.record.step, replaced=int(replaced)
            )
        assert self.committed is not None
        return Outcome(
            step=self.record.step,
            checkpoint=self.committed,
            best=self.record.best,
            attempt=self.attempt.number,
            already_complete=already_complete,
        )


class _Pace:
    """Examples per second between calls, over at least a second."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._since: tuple[float, int] | None = None

    def measure(self, examples: int) -> float:
        """The pace when `examples` have been consumed; 0 before there is one."""
        now = time.monotonic()
        if self._since is None:
            self._since = (now, examples)
        seconds, count = now - self._since[0], examples - self._since[1]
        if seconds >= 1:
            self._rate, self._since = count / seconds, (now, examples)
        return self._rate


def _loggers(store: Store, attempt: int) -> list[Logger]:
    from raymat.train.tensorboard import TensorBoardLog  # half a second that only rank 0 needs

    return [MetricsLog(store, attempt), TensorBoardLog(store, attempt)]
