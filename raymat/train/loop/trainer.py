"""The training loop: from the newest checkpoint to the end of the run, complete without Ray.

It is handed batches (Feed), a store, and somebody to tell (Host). What must be equal on all workers is decided by rank
0 and broadcast, or follows from sums that all of them share; collectives stand at the same place of every step.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import RetentionPolicy
from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch
from raymat.data.feed import Feed
from raymat.data.sample_order import Cursor, SampleOrder, digest_lanes, digest_text
from raymat.distributed.collectives import Group
from raymat.distributed.world import World
from raymat.errors import LeaseLostError, RaymatError, StorageError, TrainingError, first_line
from raymat.storage.store import Store
from raymat.train.loop.checkpointing import AsyncSaver, Saved
from raymat.train.loop.interfaces import Host
from raymat.train.loop.nonfinite_steps import BadStep, NonfiniteStepCounter
from raymat.train.loop.preemption import PreemptionHandler
from raymat.train.loop.reporter import Reporter
from raymat.train.loop.retainer import Retainer
from raymat.train.loop.schedule import Schedule
from raymat.train.loop.startup import begin
from raymat.train.loop.state import ResumeContract, RunState
from raymat.train.loop.train_step import StepResult
from raymat.train.loop.validation_points import Parts, ValidationPoints
from raymat.train.loop.watchdog import Activity, Heartbeat, Watchdog
from raymat.train.observability.events import EventLog
from raymat.train.observability.logger_setup import make_loggers
from raymat.train.observability.unreadable_images import ReplacementReport
from raymat.train.optim.lr_schedule import rates
from raymat.train.optim.mixed_precision import settled
from raymat.train.run.attempt import Attempt, begin_attempt
from raymat.train.run.notice import LeavingError
from raymat.train.validation.criteria import Validation, plateau_reductions
from raymat.train.validation.deferred import DeferredValidation
from raymat.train.validation.evaluator import finite
from raymat.train.validation.interface import NoValidator, Validator

PARTING_SECONDS = 30.0
"""How long a run that fails waits for a checkpoint that is on its way."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How `run` ended."""

    step: int
    """Completed steps: the run's total."""
    checkpoint: CheckpointId
    """The newest one: of the last step."""
    best: Validation | None
    """The best validation by --best-metric."""
    attempt: int
    already_complete: bool
    """Whether there was nothing left to do."""
    stopped: str | None = None
    """Why training stopped before the run's length; None if it did not."""


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
    nearby: str | None = None,
    validator: Validator | None = None,
) -> Outcome:
    """Train to the end of the run, from its newest verified checkpoint or from the start. Called by all workers.

    `nearby`: a folder on this machine's disk for copies of its newest shards. `validator`: who can validate
    beside training.

    `torch.distributed` must be initialised if `world` is larger than 1. Sets this process's number of threads, which
    the last bits of every sum depend on.

    Raises:
        ConfigError, DataError: the run was begun with another configuration or dataset, or cannot be trained.
        WeightsError: `--init` cannot be used. StorageError: storage fails. TrainingError: training diverged.
        LeaseLostError: another driver has the run, says the host.
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
    attempt.events.listener = host.event
    attempt.events.write_beside()
    pulse = Heartbeat()
    host.attend(pulse)

    def stuck(doing: Activity) -> None:
        attempt.events.emit("stuck", rank=world.rank, **dataclasses.asdict(doing))
        attempt.events.close()
        host.stuck(doing)

    limit = config.workers.stuck_after.seconds
    with _TellFailure(attempt.events), Watchdog(pulse, limit, stuck):
        promise = ResumeContract(config, listing_digest, order.lineage)
        training = _Training(config, schedule, order, group, feed, store, host, attempt, pulse)
        return training.run(run_id, promise, device, nearby, validator or NoValidator())


class _TellFailure:
    """Writes an `end` event for whatever ends the block before its time and raises it on; closes the log."""

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
        if isinstance(error, LeavingError):
            self._events.emit("end", outcome="left", error=error.line)
        elif error is not None:
            text = error.line if isinstance(error, RaymatError) else first_line(error)
            self._events.emit("end", outcome="failed", error=f"{type(error).__name__}: {text}")
        self._events.close()


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
        pulse: Heartbeat,
    ) -> None:
        self.config, self.schedule, self.order = config, schedule, order
        self.group, self.feed, self.store, self.host = group, feed, store, host
        self.attempt, self.events, self.pulse = attempt, attempt.events, pulse
        loggers = make_loggers(store, attempt.number, config.log.logger, group)
        self.report = Reporter(
            stage=config.stage,
            schedule=schedule,
            group=group,
            host=host,
            attempt=attempt.number,
            loggers=loggers,
        )
        self.replaced = ReplacementReport(attempt.events)
        self.record = RunState()
        self.stopped: str | None = None
        """Why training ends before the run's length."""
        self.began, self.trained, self.fed = time.monotonic(), False, math.nan

    def run(
        self,
        run_id: str,
        promise: ResumeContract,
        device: torch.device,
        nearby: str | None,
        validator: Validator,
    ) -> Outcome:
        self.local_cache = LocalCache.open(nearby, run_id, self.events.emit) if nearby else None
        self.watch = NonfiniteStepCounter(self.config.optim.max_bad_steps, device)
        self._begin(run_id, promise, device)
        self.saver = self._saver(run_id, promise)
        self.step.before_update = self.saver.settle
        self.saver.on_look = lambda: self._beat("waiting for storage")
        self.departure = PreemptionHandler(
            self.group, self.host, self.saver, tell=self._tell, commit=self._commit
        )
        self.validations = self._validations(run_id, validator)
        try:
            return self._to_the_end()
        except TrainingError:
            # All workers raise it together, and nobody waits for their places: what is on its way may arrive.
            self.saver.abandon(PARTING_SECONDS)
            raise
        except (StorageError, LeaseLostError):
            self.saver.abandon(0.0)
            raise

    def _to_the_end(self) -> Outcome:
        complete = self._complete
        self.validations.start(self.newest)
        if self.stopped and not complete:  # by a validation that a notice had kept from its end
            self.saver.reopen()
            self._commit()
        complete = complete and self._complete
        while not self._complete:
            self._segment(self.schedule.segment_end(self.record.step))
        return self._end(complete)

    @property
    def _complete(self) -> bool:
        return self.record.step >= self.schedule.total_steps or self.stopped is not None

    # Before the first step.

    def _begin(self, run_id: str, promise: ResumeContract, device: torch.device) -> None:
        found = begin(
            self.config,
            self.store,
            self.group,
            self.schedule,
            device,
            run_id=run_id,
            promise=promise,
            local_cache=self.local_cache,
            beat=self._beat,
            tell=self._tell,
        )
        self.step, self.record, self.newest = found.step, found.record, found.checkpoint
        self.damaged = found.damaged
        self.watch.in_a_row = self.record.bad_steps
        self._judge()
        if self.newest is not None:
            self.report.committed(self.newest)
        self.report.resumed(self.record.step)
        self.host.restored(self.newest)

    def _saver(self, run_id: str, promise: ResumeContract) -> AsyncSaver:
        kept, number = self.config.checkpoint, self.attempt.number
        policy = RetentionPolicy(keep=kept.keep, best=kept.best_mode)
        self.retainer = (
            Retainer(self.store, policy, number, metric=kept.best_metric)
            if self.group.leads
            else None
        )
        return AsyncSaver(
            self.store,
            self.group,
            self.host,
            self.events,
            run_id=run_id,
            attempt=number,
            promise=promise,
            loggers=self.report.loggers,
            resumed=self.record.step,
            local_cache=self.local_cache,
        )

    def _validations(self, run_id: str, validator: Validator) -> ValidationPoints:
        limit = self.config.workers.stuck_after.seconds
        late = DeferredValidation(self.store, validator, self._tell, limit=limit)
        parts = Parts(
            config=self.config,
            schedule=self.schedule,
            store=self.store,
            run_id=run_id,
            attempt=self.attempt.number,
            group=self.group,
            feed=self.feed,
            step=self.step,
            saver=self.saver,
            departure=self.departure,
            report=self.report,
            replaced=self.replaced,
            beat=self._beat,
            tell=self._tell,
            committed=self._committed,
            validated=self._validated,
            complete=lambda: self._complete,
            valid_since=self.order.lineage.valid_since,
        )
        return ValidationPoints(parts, self.record, late if self.group.leads else None)

    # Steps.

    def _segment(self, end: int) -> None:
        """Train up to completed step `end`, where the feed is closed: for a validation, or because the run ends."""
        for batch in self._batches(end):
            self._beat("training")
            self._train(batch)
            if self.record.step < end:
                self._boundary()
                self.departure.heed(self.record.step, self.watch.heard)
        if self.record.step != end:
            raise TrainingError(
                f"the feed ended before step {self.record.step}, expected it up to step {end - 1}"
            )
        self._boundary()
        if not self._complete:
            self.departure.heed(end, self.watch.heard)

    def _batches(self, end: int) -> Iterator[MicroBatch]:
        batches = self.feed.train(self.record.step, end)
        while True:
            self._beat("waiting for a batch")
            batch = next(batches, None)
            if batch is None:
                return
            if not self.trained:
                self.fed = time.monotonic()
            yield batch

    def _train(self, batch: MicroBatch) -> None:
        if batch.step != self.record.step:
            raise TrainingError(f"the feed gave step {batch.step}, expected {self.record.step}")
        self.replaced.see(batch)
        numbers = self.order.step_numbers(batch.step)
        rate = rates(self.config, self.record.cursor.next_example, self.record.rates)
        done = batch.step + 1
        pictures = self.group.leads and self.schedule.draws_images(done)
        result = self.step(batch, len(numbers), rate, pictures, self.departure.heard())
        self.record.step, self.record.cursor = done, Cursor(self.schedule.examples(done))
        self._check_health(self.watch.push(done, numbers, result.health))
        self._tell_first_step()
        self.departure.step_ended()
        if result.pictures is not None:
            self.report.images(done, result.pictures)
        if self.schedule.logs(done):
            self._log_row(batch, result, rate)

    def _check_health(self, found: list[BadStep]) -> None:
        for bad in found:
            self._tell("nonfinite", **bad.fields())
        self.watch.refuse()

    def _tell_first_step(self) -> None:
        """What a restart cost ends here."""
        if not self.trained:
            seconds, batch = time.monotonic() - self.began, self.fed - self.began
            self._tell("first_step", step=self.record.step, seconds=seconds, batch=batch)
        self.trained = True

    def _log_row(self, batch: MicroBatch, result: StepResult, rate: dict[str, float]) -> None:
        """A training row; and a look at what is committed by now, since the workers talk to each other anyway."""
        lanes = digest_lanes(batch.examples).tolist()
        total, count, *summed = self.group.sums([result.loss_sum, float(result.count), *lanes])
        digest = digest_text(summed)
        self.report.row("train", self.record.step, finite(total / count), digest=digest, lr=rate)
        self._committed(self.saver.poll())
        self.validations.look()
        self.report.progress(self.record)

    # Between steps: validation, then the checkpoint that holds its result, or that it reads.

    def _boundary(self) -> None:
        if self.schedule.validates(self.record.step):
            self.validations.due()
        if self.stopped or self.schedule.commits(self.record.step):
            self._commit()
            self.validations.saved()

    def _validated(self, validation: Validation) -> None:
        """`validation` is known on all workers: it counts from now on."""
        self.record.validated(validation, self.order.lineage.valid_since)
        before = self.record.rates.reductions
        self._judge()
        if self.record.rates.reductions > before:
            rate = rates(self.config, self.record.cursor.next_example, self.record.rates)
            self._tell(
                "plateau", step=self.record.step, reductions=self.record.rates.reductions, lr=rate
            )

    def _judge(self) -> None:
        """What follows from the validations so far."""
        found, lineage, rates_now = self.record.validations, self.order.lineage, self.record.rates
        reductions = rates_now.reductions_before + plateau_reductions(self.config, found, lineage)
        self.record.rates = dataclasses.replace(rates_now, reductions=reductions)
        self.stopped = None
        if self.record.step < self.schedule.total_steps:
            self.stopped = self.record.stop_reason(self.config, lineage)

    def _commit(self, until: float | None = None) -> None:
        """Save; at the run's end, or with `until` (Unix seconds), also wait until it is committed."""
        self._beat("saving")
        self._check_health(self.watch.drain())
        self.record.bad_steps = self.watch.in_a_row
        last = self._complete
        if last and self.local_cache is not None:
            self.local_cache.stop()
        metrics, found = self.report.metrics(self.record), []
        if self.saver.newest_step != self.record.step:
            urgent = last or until is not None
            found += self.saver.save(self.step, self.record, metrics, urgent=urgent)
        if last or until is not None:
            until = math.inf if last or until is None else until
            found += self.saver.finish(self.step, self.record, metrics, until=until)
        if found:
            self._committed(found)
            self.report.progress(self.record)

    def _committed(self, found: list[Saved]) -> None:
        for saved in found:
            self.newest = saved.checkpoint
            self.validations.committed(saved.checkpoint)
            self._tell(
                "commit",
                checkpoint=str(saved.checkpoint),
                step=saved.checkpoint.step,
                seconds=saved.seconds,
                stall=saved.stall,
                bytes=saved.bytes,
            )
        if found:
            self.report.committed(found[-1].checkpoint)
            if self.retainer is not None:
                self.retainer.committed(self.record, self.damaged)

    def _end(self, already_complete: bool) -> Outcome:
        self._beat("ending")
        if self.retainer is not None:
            if already_complete:  # who made it complete may have been killed before it cleared up
                self.retainer.committed(self.record, self.damaged)
            self.retainer.finish(self.record, self.damaged)
        if self.local_cache is not None:
            self.local_cache.remove()
        (replaced,) = self.group.sums([float(self.replaced.count)])
        self._tell(
            "end",
            outcome="complete",
            reason=f"stopped early: {self.stopped}" if self.stopped else "the run's length",
            step=self.record.step,
            replaced=int(replaced),
            waited=self.validations.waited,
            saves=dataclasses.asdict(self.saver.counts),
        )
        self.host.ended()
        assert self.newest is not None
        return Outcome(
            step=self.record.step,
            checkpoint=self.newest,
            best=self.record.best(self.config),
            attempt=self.attempt.number,
            already_complete=already_complete,
            stopped=self.stopped,
        )

    def _beat(self, what: str) -> None:
        self.pulse.beat(what, self.record.step)

    def _tell(self, kind: str, **fields: Any) -> None:
        """An event that all workers know of, written by rank 0."""
        if self.group.leads:
            self.events.emit(kind, **fields)
