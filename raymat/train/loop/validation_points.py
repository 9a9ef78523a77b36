"""One worker's part in the run's validations: when, where, and from when on their results count.

With --validation loop a validation point is a pause: all workers validate, and the result counts at once. Else a validation is
begun there, beside training if there is a place, and its result counts from the next validation point on, or from the
run's end, wherever it was found. The run's last validation is always a pause: there is nothing to train meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import Contents, read_contents
from raymat.config.run import RunConfig
from raymat.data.feed import Feed
from raymat.distributed.collectives import Group
from raymat.errors import CheckpointError, RaymatError
from raymat.storage.store import Store
from raymat.train.loop.checkpointing import AsyncSaver, Saved
from raymat.train.loop.preemption import PreemptionHandler
from raymat.train.loop.reporter import Reporter
from raymat.train.loop.restore import read_together
from raymat.train.loop.schedule import Schedule
from raymat.train.loop.state import RunState
from raymat.train.loop.train_step import TrainStep
from raymat.train.observability.unreadable_images import ReplacementReport
from raymat.train.validation.checkpoint_validation import evaluators_of
from raymat.train.validation.criteria import Validation
from raymat.train.validation.deferred import Answer, DeferredValidation
from raymat.train.validation.evaluator import Evaluator, validate
from raymat.train.validation.result import StoredResult

POLL_SECONDS = 0.2
"""How often the workers look whether what they wait for is there."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What validations need of the attempt."""

    config: RunConfig
    schedule: Schedule
    store: Store
    run_id: str
    attempt: int
    group: Group
    feed: Feed
    step: TrainStep
    saver: AsyncSaver
    departure: PreemptionHandler
    report: Reporter
    replaced: ReplacementReport
    beat: Callable[[str], None]
    """Says what this worker turns to."""
    tell: Callable[..., None]
    """Writes an event once for all workers."""
    committed: Callable[[list[Saved]], None]
    """Told of what is found to be committed."""
    validated: Callable[[Validation], None]
    """Told of a validation that counts from now on."""
    complete: Callable[[], bool]
    """Whether the run ends where it is."""
    valid_since: int
    """The step after which the validation set became what it is."""


class ValidationPoints:
    """Every method is called by all workers, at the same steps."""

    def __init__(self, parts: Parts, record: RunState, late: DeferredValidation | None) -> None:
        """`late`: on rank 0 alone."""
        self._parts, self._record, self._late = parts, record, late
        self._beside = False
        """Whether the newest one is to run beside training, once its checkpoint is committed."""
        self.waited = 0.0
        """Seconds that training stood still for results, in this attempt."""

    def start(self, restored: CheckpointId | None) -> None:
        """Before the first step: what is due, or was begun, at the step that the run goes on from.

        Without a checkpoint that is what the first weights are worth; and a validation set that cannot be read shows
        now, not hours later.
        """
        schedule, record = self._parts.schedule, self._record
        if restored is None:
            if schedule.valid_examples:
                self._show(0, self._pause())
            return
        pending = record.pending_validation
        if pending is not None and pending > self._parts.valid_since:
            self._alike(lambda late: late.resume(pending, restored))
        done = [validation.step for validation in record.validations]
        if schedule.validates(record.step) and record.step not in (pending, *done):
            self.due(restored)  # a notice came in the middle of it

    def due(self, restored: CheckpointId | None = None) -> None:
        """A validation is due after the step that the run is at. `restored`: its checkpoint, if it is committed already.

        Raises:
            LeavingError: the workers leave; all is done again from the checkpoint of this step.
        """
        self._settle()
        step = self._record.step
        schedule = self._parts.schedule
        # Also where the run had ended before it was made longer: there it counted at once.
        if not schedule.validates_late or schedule.stops(step) or self._parts.complete():
            self._apply(step, self._pause())
            return
        place = self._alike(lambda late: late.place())
        self._record.pending_validation = step
        self._alike(lambda late: late.expect(step))
        self._beside = place.claim is not None
        if not self._beside:
            self._parts.tell("validation_in_loop", step=step, reason=place.text)
            self._keep(self._pause())
        elif restored is not None:
            self.committed(restored)

    def saved(self) -> None:
        """The save of a validation point was due: where it was left out, only the workers still have the weights."""
        step, saver = self._record.step, self._parts.saver
        if self._beside and step == self._record.pending_validation and saver.newest_step != step:
            self._beside = False
            self._parts.tell("validation_in_loop", step=step, reason="storage is behind")
            self._keep(self._pause())

    def committed(self, checkpoint: CheckpointId) -> None:
        """`checkpoint` is committed: a validation that waits for it begins."""
        if self._late is not None:
            self._late.committed(checkpoint)

    def look(self) -> None:
        """Begin again what died. Not a collective."""
        if self._late is not None:
            self._late.look()

    def _settle(self) -> None:
        """From now on the result of the validation that is under way counts; wait for it if need be."""
        step = self._record.pending_validation
        if step is None:
            return
        if step <= self._parts.valid_since:
            # Of another validation set than all that come: who found it when must not matter.
            self._record.pending_validation = None
            self._parts.tell("validation_lost", step=step, reason="the validation set has changed")
            return
        began = time.monotonic()
        answer = self._await(step)
        waited = time.monotonic() - began
        self.waited += waited
        result, reason = answer.result, answer.reason
        if answer.checkpoint is not None:
            self._parts.tell("validation_in_loop", step=step, reason=reason)
            result, reason = self._from(answer.checkpoint)
        if result is None:
            self._parts.tell("validation_lost", step=step, reason=reason)
        self._record.pending_validation = None
        self._apply(step, result, waited)

    def _await(self, step: int) -> Answer:
        while True:
            lost = not self._parts.saver.awaits(step)
            answer: Answer = self._alike(
                partial(DeferredValidation.look, lost=lost, waited_for=True)
            )
            if not answer.waits:
                return answer
            self._between("waiting for a validation")
            time.sleep(POLL_SECONDS)
            self._parts.committed(self._parts.saver.poll())

    def _from(self, checkpoint: CheckpointId) -> tuple[StoredResult | None, str]:
        """Validate a checkpoint together, with networks of its own: training's stay as they are."""
        parts, began = self._parts, time.monotonic()
        contents = self._contents(checkpoint)
        if isinstance(contents, str):
            return None, contents
        try:
            snapshot, _ = read_together(parts.store, parts.group, contents)
        except CheckpointError as error:
            return None, error.line
        examiners = evaluators_of(snapshot.tensors, snapshot.extra, parts.config, parts.step.device)
        return self._pause(examiners, began), ""

    def _contents(self, checkpoint: CheckpointId) -> Contents | str:
        """What to read of it, or why it cannot be read."""

        def read(late: DeferredValidation) -> Contents | str:
            try:
                return read_contents(self._parts.store, checkpoint, self._parts.run_id)
            except CheckpointError as error:
                return error.line

        found: Contents | str = self._alike(read)
        return found

    def _pause(
        self, examiners: dict[str, Evaluator] | None = None, began: float | None = None
    ) -> StoredResult:
        """What all workers find together. Default: of the weights as they are."""
        parts = self._parts
        began = time.monotonic() if began is None else began
        if examiners is None:
            examiners = parts.step.examiners(parts.config.log.metrics)
        parts.beat("validating")
        found = validate(
            examiners,
            parts.feed,
            parts.group,
            parts.replaced.see,
            lambda: self._between("validating"),
        )
        return StoredResult(found, "loop", time.monotonic() - began)

    def _between(self, what: str) -> None:
        self._parts.beat(what)
        # Before the first step there is nothing to lose, after the last nothing left to do.
        step = self._record.step
        if step and not self._parts.complete():
            self._parts.departure.listen(step)

    def _keep(self, result: StoredResult) -> None:
        """It counts later, as if it had been found beside training."""
        attempt = self._parts.attempt
        self._alike(lambda late: late.here(result, attempt))

    def _apply(self, step: int, result: StoredResult | None, waited: float = 0.0) -> None:
        """`result` is that of the validation after `step` steps, and counts from now on; None: it is lost."""
        found = result.found if result else None
        loss, metrics = (found.loss, found.metrics) if found else (None, {})
        self._parts.validated(Validation(step, loss, metrics))
        if result is not None:
            self._parts.replaced.note(result.replaced)
            self._show(step, result, waited)

    def _show(self, step: int, result: StoredResult, waited: float = 0.0) -> None:
        """A row and an event."""
        found = result.found
        self._parts.report.row(
            "valid",
            step,
            found.loss,
            digest=found.digest,
            count=found.count,
            metrics=found.metrics,
        )
        self._parts.tell(
            "validation",
            step=step,
            loss=found.loss,
            metrics=found.metrics,
            seconds=result.seconds,
            place=result.place,
            waited=waited,
        )

    def _alike(self, ask: Callable[[DeferredValidation], Any]) -> Any:
        """What `ask` gives on rank 0, on all workers; what it raises is raised on all of them."""
        value: Any = None
        if self._late is not None:
            try:
                value = ask(self._late)
            except RaymatError as error:
                value = error
        value = self._parts.group.from_lead(value)
        if isinstance(value, RaymatError):
            raise value
        return value
