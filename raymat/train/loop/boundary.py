"""A boundary between two steps: first validation, then the checkpoint that holds its result or that it reads, then notices."""

from __future__ import annotations

import time

from raymat.checkpoint.manifest import CheckpointId
from raymat.train.loop.attempt import Attempt
from raymat.train.loop.preemption import PreemptionHandler
from raymat.train.loop.reporter import Reporter
from raymat.train.loop.saving.checkpointing import Saved
from raymat.train.loop.saving.commit_pace import CommitPace
from raymat.train.loop.saving.commits import Checkpoints
from raymat.train.loop.steps import TrainingSteps
from raymat.train.loop.validation_points import Finding, ValidationPoints
from raymat.train.observability.training_events import RatesLowered
from raymat.train.optim.lr_schedule import rates


class Boundary:
    """One worker's part. All workers call every method at the same steps."""

    def __init__(
        self,
        attempt: Attempt,
        steps: TrainingSteps,
        checkpoints: Checkpoints,
        validations: ValidationPoints,
        preemption: PreemptionHandler,
        reporter: Reporter,
    ) -> None:
        self._attempt, self._steps, self._state = attempt, steps, steps.state
        self._checkpoints, self._validations = checkpoints, validations
        self._preemption, self._reporter = preemption, reporter
        self._pace = CommitPace(attempt, self._state)

    def begin(self) -> None:
        """Do what is due before the first step, at the checkpoint that the run resumes from."""
        newest = self._checkpoints.newest
        if newest is None:
            first = self._validations.of_first_weights()
            if first is not None:  # it is shown, and counts for nothing
                self._reporter.validation(first.step, first.result, first.waited)
        elif self._validations.resume(newest):
            was_complete = self.complete
            self._validate(newest)
            if self._state.stopped and not was_complete:
                self._checkpoints.saver.reopen()
                self.commit()

    def cross(self) -> None:
        """Do what is due after a step.

        Raises:
            LeaveRequest: the workers are to leave, says a notice.
        """
        schedule, step = self._attempt.schedule, self._state.step
        if schedule.validates(step):
            self._validate()
        # After the validation: the checkpoint holds its result, or is what it reads.
        kept = schedule.keeps(step) or self._pace.reached()
        if self._state.stopped or kept or schedule.commits(step) or self._pace.due():
            self.commit(kept=kept)
            self._validations.saved()
            self._pace.adapt(self._steps.seconds)
        # Last: what was due at this step is not due again after a restart.
        if not self.complete and self._preemption.check(step, self._steps.heard):
            self.commit()

    @property
    def complete(self) -> bool:
        """Whether the run ends here."""
        return self._state.complete(self._attempt.schedule)

    def commit(self, until: float | None = None, *, kept: bool = False) -> None:
        """Save; at the run's end, or with `until` (`time.monotonic` seconds), also wait until it is committed.

        `kept`: for good, so that it must not be left out however slow storage is.
        """
        self._attempt.record_activity("saving", self._state.step)
        self._steps.read_health()
        self._pace.begin()
        found = self._checkpoints.save(self._state, last=self.complete, until=until, kept=kept)
        if found:
            self._committed(found)
            self._reporter.progress(self._state)

    def poll(self) -> None:
        """Note what storage and the validation beside training have done since the last look."""
        self._committed(self._checkpoints.saver.poll())
        self._validations.restart_dead()
        self._reporter.progress(self._state)

    def _validate(self, restored: CheckpointId | None = None) -> None:
        """Let the pending result count, then begin the validation of this step. `restored`: its checkpoint."""
        if self._validations.expects_result():
            began = time.monotonic()
            while (answer := self._validations.poll()).waits:
                # Its checkpoint may be committed only now.
                self._committed(self._checkpoints.saver.poll())
            self._apply(self._validations.take_pending(answer, time.monotonic() - began))
        # Only now: the pending result may end the run here, and then this validation counts at once.
        found = self._validations.begin(restored)
        if found is not None:
            self._apply(found)

    def _apply(self, found: Finding) -> None:
        """Let a validation count: for the rates, for the run's end, and for the logs."""
        attempt, state, past = self._attempt, self._state, self._attempt.run.order.lineage
        before = state.rates.reductions
        state.add_validation(found.validation, past.valid_since)
        state.judge(attempt.config, past, attempt.schedule.total_steps)
        if state.rates.reductions > before:
            rate = rates(attempt.config, state.cursor.next_example, state.rates)
            attempt.emit(RatesLowered(step=state.step, reductions=state.rates.reductions, lr=rate))
        best = state.best(attempt.config)
        self._reporter.validation(
            found.step, found.result, found.waited, best is not None and best.step == found.step
        )

    def _committed(self, found: list[Saved]) -> None:
        """Do what follows from each commit."""
        self._pace.committed(found)
        for saved in found:
            self._validations.committed(saved.checkpoint)
        self._checkpoints.record(found, self._state, self._steps.data_wait)
