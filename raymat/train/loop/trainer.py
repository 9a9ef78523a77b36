"""The training loop: from the newest checkpoint to the end of the run, complete without Ray.

    run                          takes an attempt's number, and watches over it
    ├─ Trainer.start             restores the newest checkpoint
    └─ Trainer.train
       ├─ TrainingSteps.train    a step: one batch forward and backward, the update, what is recorded of it
       ├─ Boundary.cross         between steps: validate, save, leave if the machines go
       └─ Trainer._end           retention, the last events

What must be equal on all workers is decided by rank 0 and broadcast, or follows from sums that all of them share; all
workers pass the same collectives in the same order.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import CheckpointId
from raymat.data.feed import Feed
from raymat.errors import LeaseLostError, StorageError, TrainingError
from raymat.storage.store import Store
from raymat.train.loop.attempt import Attempt, begin_attempt, supervise
from raymat.train.loop.boundary import Boundary
from raymat.train.loop.interfaces import Host, TrainableRun, Worker
from raymat.train.loop.preemption import LeaveRequest, PreemptionHandler
from raymat.train.loop.reporter import Reporter
from raymat.train.loop.saving.commits import Checkpoints
from raymat.train.loop.startup import StartingPoint, start_from_newest
from raymat.train.loop.steps import TrainingSteps
from raymat.train.loop.validation_points import PausedValidation, ValidationPoints
from raymat.train.observability.attempt_events import AttemptEnded
from raymat.train.observability.fault_reports import LocalCacheReport
from raymat.train.validation.criteria import Validation
from raymat.train.validation.interface import NoValidator, Validator

LAST_SAVE_SECONDS = 30.0
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
    prepared: TrainableRun,
    worker: Worker,
    *,
    feed: Feed,
    store: Store,
    host: Host,
    validator: Validator | None = None,
) -> Outcome:
    """Train to the end of the run, from its newest verified checkpoint or from the start. Called by all workers.

    `validator`: validates beside training; None: nobody does. `torch.distributed` must be initialised if there is more
    than one worker. Sets this process's number of threads, which the last bits of every sum depend on.

    Raises:
        ConfigError, DataError: the run was begun with another configuration or dataset, or cannot be trained.
        WeightsError: `--init` cannot be used. StorageError: storage fails. TrainingError: training diverged.
        LeavingError: the workers leave because of a notice. LeaseLostError: another driver has the run, says the host.
    """
    attempt = begin_attempt(prepared, worker, store, host)
    with supervise(attempt, host):
        folder = worker.cache_folder
        cache = (
            LocalCache.open(folder, prepared.run_id, LocalCacheReport(attempt.events))
            if folder
            else None
        )
        return Trainer.start(attempt, host, feed, cache, validator or NoValidator()).train()


class Trainer:
    """One worker's part in one attempt."""

    @classmethod
    def start(
        cls,
        attempt: Attempt,
        host: Host,
        feed: Feed,
        cache: LocalCache | None,
        validator: Validator,
    ) -> Trainer:
        """Start from the newest checkpoint, or from the first step. Raises as `run` does."""
        reporter = Reporter(attempt, host)
        start = start_from_newest(attempt, host, reporter, cache, feed)
        checkpoints = Checkpoints(attempt, host, start, reporter, cache)
        checkpoints.remove_abandoned()
        return cls(attempt, host, feed, start, reporter, checkpoints, validator)

    def __init__(
        self,
        attempt: Attempt,
        host: Host,
        feed: Feed,
        start: StartingPoint,
        reporter: Reporter,
        checkpoints: Checkpoints,
        validator: Validator,
    ) -> None:
        self.attempt, self.host, self.state = attempt, host, start.state
        self.reporter, self.checkpoints = reporter, checkpoints
        saver = checkpoints.saver
        self.preemption = PreemptionHandler(attempt, host, saver)
        self.steps = TrainingSteps(attempt, feed, start, reporter, self.preemption, saver)
        paused = PausedValidation(attempt, feed, start, self.preemption, reporter.replaced)
        self.validations = ValidationPoints(attempt, self.state, paused, saver, validator)
        self.boundary = Boundary(
            attempt, self.steps, checkpoints, self.validations, self.preemption, reporter
        )

    def train(self) -> Outcome:
        """Train to the end of the run. Raises as `run` does."""
        saver = self.checkpoints.saver
        try:
            return self._train_to_the_end()
        except TrainingError:
            # All workers raise it together, and nobody waits for their places: what is on its way may arrive.
            saver.abandon(LAST_SAVE_SECONDS)
            raise
        except (StorageError, LeaseLostError):
            saver.abandon(0.0)
            raise

    def _train_to_the_end(self) -> Outcome:
        already_complete = self.boundary.complete
        try:
            self.boundary.begin()
            already_complete = already_complete and self.boundary.complete
            while not self.boundary.complete:
                self._train_segment(self.attempt.schedule.segment_end(self.state.step))
        except LeaveRequest as request:
            # All workers are here at the same step: they commit what they can before the deadline.
            self.state.experience = replace(self.state.experience, noticed=True)
            self.boundary.commit(until=request.until)
            wait = self.steps.data_wait
            raise self.preemption.leaving(request.notice, self.state.step, wait) from None
        return self._end(already_complete)

    def _train_segment(self, end: int) -> None:
        """Train up to completed step `end`: a validation point, or the run's end."""
        for batch in self.steps.batches(end):
            self.steps.train(batch)
            if self.attempt.schedule.logs(self.state.step):
                # Here: for the logged row the workers have just talked to each other anyway.
                self.boundary.poll()
            if self.state.step < end:
                self.boundary.cross()
        step = self.state.step
        if step != end:
            raise TrainingError(
                f"the feed ended before step {step}, expected it up to step {end - 1}"
            )
        # After the loop: the feed must be closed before a validation asks it for other batches.
        self.boundary.cross()

    def _end(self, already_complete: bool) -> Outcome:
        attempt, state, checkpoints = self.attempt, self.state, self.checkpoints
        attempt.record_activity("ending", state.step)
        checkpoints.end(state, already_complete)
        mattes = self.reporter.mattes
        replaced, *sums = attempt.group.sums(
            [float(self.reporter.replaced.count), *mattes.numbers()]
        )
        mattes.say(sums)
        attempt.emit(
            AttemptEnded(
                outcome="complete",
                reason=f"stopped early: {state.stopped}" if state.stopped else "the run's length",
                step=state.step,
                replaced=int(replaced),
                substitutes=state.substitutes,
                waited=self.validations.waited,
                data_wait=round(self.steps.data_wait, 3),
                saves=dataclasses.asdict(checkpoints.saver.counts),
            )
        )
        self.reporter.finish()
        self.host.ended()
        assert checkpoints.newest is not None
        return Outcome(
            step=state.step,
            checkpoint=checkpoints.newest,
            best=state.best(attempt.config),
            attempt=attempt.number,
            already_complete=already_complete,
            stopped=state.stopped,
        )
