"""One worker's part in the run's validations: when, where, and from when on their results count.

With --validation loop a validation point is a pause: all workers validate, and the result counts at once. Otherwise a
validation begins there, beside training if there is a place, and its result counts from the next validation point on, or
from the run's end, wherever it was found. The run's last validation is always a pause: there is nothing left to train.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import read_contents
from raymat.data.feed import Feed
from raymat.errors import CheckpointError
from raymat.train.loop.attempt import Attempt
from raymat.train.loop.preemption import PreemptionHandler
from raymat.train.loop.restore import read_together
from raymat.train.loop.saving.checkpointing import AsyncSaver
from raymat.train.loop.startup import StartingPoint
from raymat.train.loop.state import RunState
from raymat.train.observability.fault_reports import ReplacementReport
from raymat.train.observability.validation_events import (
    ValidationDamaged,
    ValidationInLoop,
    ValidationLost,
)
from raymat.train.validation.checkpoint_validation import evaluators_of
from raymat.train.validation.criteria import Validation
from raymat.train.validation.deferred import Answer, DeferredValidation
from raymat.train.validation.evaluator import Evaluator, validate
from raymat.train.validation.interface import Validator
from raymat.train.validation.result import ResultFolder, StoredResult

T = TypeVar("T")

POLL_SECONDS = 0.2
"""How often the workers look for a result that they wait for."""


@dataclass(frozen=True)
class Finding:
    """A validation that counts from now on."""

    step: int
    result: StoredResult | None
    """None: it is lost."""
    waited: float = 0.0
    """Seconds that training stood still for it."""

    @property
    def validation(self) -> Validation:
        """What the run remembers of it."""
        if self.result is None:
            return Validation(self.step, None)
        return Validation(self.step, self.result.found.loss, self.result.found.metrics)


class PausedValidation:
    """All workers validate together while training stands still. All of them call every method, at the same steps."""

    def __init__(
        self,
        attempt: Attempt,
        feed: Feed,
        start: StartingPoint,
        preemption: PreemptionHandler,
        replaced: ReplacementReport,
    ) -> None:
        self._attempt, self._feed, self._step, self._state = attempt, feed, start.step, start.state
        self._preemption, self._replaced = preemption, replaced

    def of_training(self) -> StoredResult:
        """Validate the weights as they are. Raises LeaveRequest if the workers are to leave."""
        began = time.monotonic()
        return self._validate(self._step.evaluators(self._attempt.config.log.metrics), began)

    def of_checkpoint(self, checkpoint: CheckpointId) -> tuple[StoredResult | None, str]:
        """Validate a checkpoint with networks of its own, so that training's stay as they are.

        Returns the result, or None and why the checkpoint cannot be read. Raises LeaveRequest, StorageError.
        """
        attempt, began = self._attempt, time.monotonic()
        try:
            contents = attempt.group.on_lead(
                lambda: read_contents(attempt.store, checkpoint, attempt.run.run_id)
            )
            snapshot, _ = read_together(attempt.store, attempt.group, contents)
        except CheckpointError as error:
            return None, error.line
        evaluators = evaluators_of(snapshot, attempt.config, attempt.device)
        return self._validate(evaluators, began), ""

    def check_preemption(self, activity: str) -> None:
        """Record that training stands still for `activity`; raise LeaveRequest if the workers are to leave."""
        state = self._state
        self._attempt.record_activity(activity, state.step)
        # Before the first step there is nothing to lose, after the last nothing left to do.
        if state.step and not state.complete(self._attempt.schedule):
            self._preemption.check_between_batches(state.step)

    def _validate(self, evaluators: dict[str, Evaluator], began: float) -> StoredResult:
        self._attempt.record_activity("validating", self._state.step)
        found = validate(
            evaluators,
            self._feed,
            self._attempt.group,
            lambda batch: self._replaced.add(batch.replaced),
            lambda: self.check_preemption("validating"),
        )
        return StoredResult(found, "loop", time.monotonic() - began)


class ValidationPoints:
    """Decides where each validation runs and when its result counts; the trainer applies what counts.

    All workers call every method at the same steps.
    """

    def __init__(
        self,
        attempt: Attempt,
        state: RunState,
        paused: PausedValidation,
        saver: AsyncSaver,
        validator: Validator,
    ) -> None:
        self._attempt, self._state, self._paused, self._saver = attempt, state, paused, saver
        limit = attempt.config.workers.stuck_after.seconds
        self._deferred = DeferredValidation(
            _results_of(attempt), validator, attempt.events, limit=limit
        )
        """Asked on rank 0 alone."""
        self._beside = False
        """Whether the newest validation is to run beside training, once its checkpoint is committed."""
        self.waited = 0.0
        """Seconds that training stood still for results, in this attempt."""

    def of_first_weights(self) -> Finding | None:
        """Validate before the first step: a validation set that cannot be read shows now, not hours later."""
        if not self._attempt.schedule.valid_examples:
            return None
        return Finding(0, self._paused.of_training())

    def resume(self, restored: CheckpointId) -> bool:
        """Take up a pending validation; return whether one is due now, because a preemption broke it off."""
        state, pending = self._state, self._state.pending_validation
        if pending is not None and pending > self._valid_since:
            self._on_lead(lambda deferred: deferred.resume(pending, restored))
        known = (pending, *(validation.step for validation in state.validations))
        return self._attempt.schedule.validates(state.step) and state.step not in known

    def expects_result(self) -> bool:
        """Whether a validation is pending whose result counts from now on: wait for it with `poll`."""
        step = self._state.pending_validation
        if step is None:
            return False
        if step > self._valid_since:
            return True
        # Of another validation set than all that come: who found the result when must not matter.
        self._state.pending_validation = None
        self._emit_lost(step, "the validation set has changed")
        return False

    def poll(self) -> Answer:
        """Return what is known of the pending result, after a pause if there is nothing to do but to wait.

        Raises:
            LeaveRequest: the workers are to leave; a later attempt waits for the result.
        """
        assert self._state.pending_validation is not None
        lost = not self._saver.agreement.awaits(self._state.pending_validation)
        answer = self._on_lead(lambda deferred: deferred.poll(lost=lost, waited_for=True))
        if answer.waits:
            self._paused.check_preemption("waiting for a validation")
            time.sleep(POLL_SECONDS)
        return answer

    def take_pending(self, answer: Answer, waited: float) -> Finding:
        """Return the pending validation, of which `answer` is known after `waited` seconds; validate it if need be."""
        step = self._state.pending_validation
        assert step is not None
        self.waited += waited
        result, reason = answer.result, answer.reason
        if answer.checkpoint is not None:
            self._emit_in_loop(step, reason)
            result, reason = self._paused.of_checkpoint(answer.checkpoint)
        if result is None:
            self._emit_lost(step, reason)
        self._state.pending_validation = None
        return Finding(step, result, waited)

    def begin(self, restored: CheckpointId | None) -> Finding | None:
        """Begin the validation that is due; return it if it counts at once. `restored`: its checkpoint, if committed.

        Raises:
            LeaveRequest: the workers are to leave; all is done again from the checkpoint of this step.
        """
        state, schedule = self._state, self._attempt.schedule
        step = state.step
        # Also where the run had ended before it was made longer: there it counted at once.
        if not schedule.validates_late or schedule.stops(step) or state.complete(schedule):
            return Finding(step, self._paused.of_training())
        place = self._on_lead(lambda deferred: deferred.place())
        state.pending_validation = step
        self._on_lead(lambda deferred: deferred.expect(step))
        self._beside = place.claim is not None
        if not self._beside:
            self._validate_now(place.text)
        elif restored is not None:
            self.committed(restored)
        return None

    def saved(self) -> None:
        """Validate now if the save of a validation point was left out: only the workers still have its weights."""
        step = self._state.step
        pending = step == self._state.pending_validation
        if self._beside and pending and self._saver.newest_step != step:
            self._beside = False
            self._validate_now("storage is behind")

    def committed(self, checkpoint: CheckpointId) -> None:
        """Begin the validation that waits for the commit of `checkpoint`."""
        if self._attempt.group.leads:
            self._deferred.committed(checkpoint)

    def restart_dead(self) -> None:
        """Begin again what died. Not a collective."""
        if self._attempt.group.leads:
            self._deferred.poll()

    @property
    def _valid_since(self) -> int:
        """The step after which the validation set became what it is."""
        return self._attempt.run.order.lineage.valid_since

    def _validate_now(self, reason: str) -> None:
        """Find the result in a pause; it counts later, as if it had been found beside training."""
        self._emit_in_loop(self._state.step, reason)
        result, number = self._paused.of_training(), self._attempt.number
        self._on_lead(lambda deferred: deferred.keep(result, number))

    def _on_lead(self, ask: Callable[[DeferredValidation], T]) -> T:
        return self._attempt.group.on_lead(lambda: ask(self._deferred))

    def _emit_in_loop(self, step: int, reason: str) -> None:
        self._attempt.emit(ValidationInLoop(step=step, reason=reason))

    def _emit_lost(self, step: int, reason: str) -> None:
        self._attempt.emit(ValidationLost(step=step, reason=reason))


def _results_of(attempt: Attempt) -> ResultFolder:
    def damaged(path: str, reason: str) -> None:
        attempt.events.emit(ValidationDamaged(path=path, reason=reason))

    return ResultFolder(attempt.store, attempt.run.run_id, damaged)
