"""The validation that begins at one validation point and whose result counts from the next one on.

When a result counts depends neither on when it arrives nor on who found it: what follows from it (the best checkpoint, the
learning rate, the run's end) is the same after any kill. Until then only its step is part of the run's state; the
result itself lies in storage, and the checkpoint that it is found from is kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from raymat.checkpoint.catalog import scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import StorageError
from raymat.train.observability.events import EventLog
from raymat.train.observability.validation_events import (
    ValidationBegun,
    ValidationDied,
    ValidationFound,
    ValidationRunning,
)
from raymat.train.validation.interface import Place, Validator
from raymat.train.validation.result import ResultFolder, StoredResult

log = logging.getLogger(__name__)

MAX_TRIES = 3
"""Times that a validation is begun beside training before the workers do it themselves."""
PLACE_SECONDS = 60.0
"""How long the workers wait at most for its process to start."""


@dataclass(frozen=True)
class Answer:
    """What is known of a result that the workers wait for."""

    result: StoredResult | None = None
    """The result, once it is there."""
    checkpoint: CheckpointId | None = None
    """Without a result but with a reason: the checkpoint that the workers have to validate themselves."""
    reason: str = ""
    """Why there is no result. With a reason and no checkpoint there will never be one."""

    @property
    def waits(self) -> bool:
        """Whether there is nothing to do but to wait."""
        return self.result is None and not self.reason


class DeferredValidation:
    """Rank 0's view of the validation beside training: begins it, restarts it, and fetches its result."""

    def __init__(
        self, results: ResultFolder, validator: Validator, events: EventLog, *, limit: float
    ) -> None:
        """`limit`: seconds without a sign of life after which the validation counts as dead."""
        self._results, self._validator, self._events = results, validator, events
        self._limit = limit
        self._step: int | None = None
        self._checkpoint: CheckpointId | None = None
        self._result: StoredResult | None = None
        self._tries = 0
        self._reason = ""
        self._seen = ""
        """Who was last seen to do it."""

    def place(self) -> Place:
        """Return where a validation can run beside training now."""
        return self._validator.place()

    def expect(self, step: int) -> None:
        """Expect the result of `step`, which is the next to count."""
        self._step, self._checkpoint, self._result = step, None, None
        self._tries, self._reason = 0, ""

    def resume(self, step: int, restored: CheckpointId) -> None:
        """Expect the result of `step` after a restart from `restored`: the result may be there, or its checkpoint.

        Raises:
            StorageError: storage cannot be read.
        """
        self.expect(step)
        self._result = self._results.find(step)
        if self._result is not None:
            return
        committed = [restored, *(s.id for s in scan(self._results.store) if s.state == "committed")]
        found = [checkpoint for checkpoint in committed if checkpoint.step == step]
        if found:
            self.committed(restored if restored in found else max(found))

    def keep(self, result: StoredResult, attempt: int) -> None:
        """Take the result that the workers have found themselves."""
        self._result = result
        assert self._step is not None
        try:
            self._results.write(CheckpointId(self._step, attempt), result)
        except StorageError as error:  # it is found again after a restart
            log.warning("the result of a validation is only in memory: %s", error.line)

    def committed(self, checkpoint: CheckpointId) -> None:
        """Begin to validate `checkpoint` if its result is expected."""
        if checkpoint.step == self._step and self._result is None and self._checkpoint is None:
            self._checkpoint = checkpoint
            self._begin(checkpoint)

    def poll(self, *, lost: bool = False, waited_for: bool = False) -> Answer:
        """Return what is known of the result; a validation that died is begun again.

        `lost`: the checkpoint can never be committed any more. `waited_for`: training stands still for the result.

        Raises:
            StorageError: a result cannot be read, and training waits for it.
        """
        if self._result is None and self._checkpoint is not None and not self._reason:
            self._watch(self._checkpoint, waited_for)
        if self._result is not None:
            return Answer(self._result)
        if self._checkpoint is None and lost:
            return Answer(reason="its checkpoint could not be saved")
        return Answer(None, self._checkpoint, self._reason)

    def _watch(self, checkpoint: CheckpointId, waited_for: bool) -> None:
        status = self._validator.look()
        if status.checkpoint not in (checkpoint, None):
            return  # of the validation before
        if status.state == "running" and status.text != self._seen:
            self._seen = status.text
            self._events.emit(ValidationRunning(step=checkpoint.step, who=status.text))
        if status.state == "ended":
            self._fetch(checkpoint, waited_for)
        elif status.state == "died":
            self._restart(checkpoint, status.text)
        elif status.state == "running" and status.seconds > self._limit:
            self._restart(checkpoint, f"it gave no sign of life for {status.seconds:.0f} s")
        elif status.state == "waiting" and waited_for and status.seconds > PLACE_SECONDS:
            self._give_up(f"it found no place for {status.seconds:.0f} s")

    def _fetch(self, checkpoint: CheckpointId, waited_for: bool) -> None:
        try:
            self._result = self._results.read(checkpoint)
        except StorageError:
            if waited_for:
                raise
            return  # there is time to try again
        if self._result is None:
            self._restart(checkpoint, "it left no result")
        else:
            self._events.emit(ValidationFound(step=checkpoint.step, seconds=self._result.seconds))

    def _restart(self, checkpoint: CheckpointId, why: str) -> None:
        self._events.emit(ValidationDied(step=checkpoint.step, error=why, tries=self._tries))
        if self._tries < MAX_TRIES:
            self._validator.end()
            self._begin(checkpoint)
        else:
            self._give_up(f"it died {self._tries} times, at last: {why}")

    def _give_up(self, reason: str) -> None:
        """Leave the validation to the workers."""
        self._reason = reason
        self._validator.end()

    def _begin(self, checkpoint: CheckpointId) -> None:
        place = self._validator.place()
        if place.claim is None:
            self._reason = place.text
            return
        self._tries += 1
        self._events.emit(
            ValidationBegun(step=checkpoint.step, place=place.text, tries=self._tries)
        )
        self._validator.begin(checkpoint)
