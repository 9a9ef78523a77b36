"""The validation that is begun at one validation point and whose result counts from the next one on.

When a result counts does not depend on when it is there, nor on who found it: what follows from it (the best checkpoint, the
learning rate, the run's end) is the same after any kill. Until then only its step is part of the run's state; the
result itself lies in storage, the checkpoint that it is found from stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from raymat.checkpoint.catalog import scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import StorageError
from raymat.storage.store import Store
from raymat.train.validation.interface import Place, Validator
from raymat.train.validation.result import StoredResult, find_result, read_result, write_result

log = logging.getLogger(__name__)

MAX_TRIES = 3
"""So often a validation is begun beside training, deaths and all, before the workers do it."""
PLACE_SECONDS = 60.0
"""How long the workers wait at most for its process to start."""


@dataclass(frozen=True)
class Answer:
    """What is known of the result that the workers wait for."""

    result: StoredResult | None = None
    """It is there."""
    checkpoint: CheckpointId | None = None
    """Without a result: the workers have to validate this checkpoint themselves."""
    reason: str = ""
    """Why there is no result. With neither a result nor a checkpoint there will never be one."""

    @property
    def waits(self) -> bool:
        """Whether there is nothing to do but to wait."""
        return self.result is None and not self.reason


class DeferredValidation:
    """Rank 0's view of it."""

    def __init__(
        self, store: Store, validator: Validator, tell: Callable[..., None], *, limit: float
    ) -> None:
        """`tell` writes an event. `limit`: seconds without a sign of life after which it is taken for dead."""
        self._store, self._validator, self._tell, self._limit = store, validator, tell, limit
        self._step: int | None = None
        self._checkpoint: CheckpointId | None = None
        self._result: StoredResult | None = None
        self._begun = 0
        """How often."""
        self._reason = ""
        self._seen = ""
        """Who was last seen to do it."""

    def place(self) -> Place:
        """Whether a validation can run beside training now."""
        return self._validator.place()

    def expect(self, step: int) -> None:
        """The next result that counts is that of `step`."""
        self._step, self._checkpoint, self._result = step, None, None
        self._begun, self._reason = 0, ""

    def resume(self, step: int, restored: CheckpointId) -> None:
        """As `expect`, after a restart from `restored`: the result may be there, or its checkpoint.

        Raises:
            StorageError: storage cannot be read.
        """
        self.expect(step)
        self._result = find_result(self._store, step)
        if self._result is not None:
            return
        committed = [restored, *(s.id for s in scan(self._store) if s.state == "committed")]
        found = [checkpoint for checkpoint in committed if checkpoint.step == step]
        if found:
            self.committed(restored if restored in found else max(found))

    def here(self, result: StoredResult, attempt: int) -> None:
        """The workers have found the result themselves."""
        self._result = result
        assert self._step is not None
        try:
            write_result(self._store, CheckpointId(self._step, attempt), result)
        except StorageError as error:  # it is found again after a restart
            log.warning("the result of a validation is only in memory: %s", error.line)

    def committed(self, checkpoint: CheckpointId) -> None:
        """A checkpoint is committed: where its result is expected, begin."""
        if checkpoint.step == self._step and self._result is None and self._checkpoint is None:
            self._checkpoint = checkpoint
            self._begin()

    def look(self, *, lost: bool = False, waited_for: bool = False) -> Answer:
        """How things are; a validation that died is begun again.

        `lost`: what is expected can never be committed any more. `waited_for`: training stands still for it.

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
        standing = self._validator.look()
        if standing.checkpoint not in (checkpoint, None):
            return  # of the one before
        if standing.state == "running" and standing.text != self._seen:
            self._seen = standing.text
            self._tell("validation_runs", step=self._step, who=standing.text)
        if standing.state == "ended":
            self._fetch(checkpoint, waited_for)
        elif standing.state == "died":
            self._again(standing.text)
        elif standing.state == "running" and standing.seconds > self._limit:
            self._again(f"it gave no sign of life for {standing.seconds:.0f} s")
        elif standing.state == "waiting" and waited_for and standing.seconds > PLACE_SECONDS:
            self._give_up(f"it found no place for {standing.seconds:.0f} s")

    def _fetch(self, checkpoint: CheckpointId, waited_for: bool) -> None:
        try:
            self._result = read_result(self._store, checkpoint)
        except StorageError:
            if waited_for:
                raise
            return  # there is time to look again
        if self._result is None:
            self._again("it left no result")
        else:
            self._tell("validation_found", step=self._step, seconds=self._result.seconds)

    def _again(self, why: str) -> None:
        self._tell("validation_died", step=self._step, error=why, tries=self._begun)
        if self._begun < MAX_TRIES:
            self._validator.end()
            self._begin()
        else:
            self._give_up(f"it died {self._begun} times, at last: {why}")

    def _give_up(self, reason: str) -> None:
        """Leave it to the workers."""
        self._reason = reason
        self._validator.end()

    def _begin(self) -> None:
        assert self._checkpoint is not None
        place = self._validator.place()
        if place.claim is None:
            self._reason = place.text
            return
        self._begun += 1
        self._tell("validation_begun", step=self._step, place=place.text, tries=self._begun)
        self._validator.begin(self._checkpoint)
