"""Preemption handling: what the workers agree on between steps once any of them has heard a notice."""

from __future__ import annotations

import math
import time

from raymat.train.loop.attempt import Attempt
from raymat.train.loop.interfaces import Host
from raymat.train.loop.saving.checkpointing import AsyncSaver
from raymat.train.observability.attempt_events import (
    PreemptionNoticed,
    PreemptionWithdrawn,
    WorkersLeft,
)
from raymat.train.run.notice import (
    LEAST_WAIT_SECONDS,
    Action,
    HeardNotice,
    LeavingError,
    action_on,
    merge,
)


class LeaveRequest(Exception):
    """The workers are to leave, all of them at this point: raised through the loop to where it commits and ends."""

    def __init__(self, notice: HeardNotice) -> None:
        super().__init__(notice)
        self.notice = notice
        left = math.inf if notice.left is None else max(notice.left, LEAST_WAIT_SECONDS)
        self.until = time.monotonic() + left
        """When the workers stop waiting for their last commit, in `time.monotonic` seconds."""


class PreemptionHandler:
    """One worker's part. All workers call `check` and `check_between_batches`, at the same places."""

    def __init__(self, attempt: Attempt, host: Host, saver: AsyncSaver) -> None:
        self._attempt, self._host, self._saver = attempt, host, saver
        self._notice: HeardNotice | None = None
        self._ended = time.monotonic()
        self._step_seconds = 0.0
        """Of the slowest step lately."""

    def heard(self) -> bool:
        """Whether this worker has heard a notice that still holds."""
        return self._host.notice() is not None

    def step_ended(self) -> None:
        """Measure a step: how long steps take decides how late the workers may leave."""
        now = time.monotonic()
        seconds, self._ended = now - self._ended, now
        self._step_seconds = max(seconds, 0.9 * self._step_seconds)

    def check_between_batches(self, step: int) -> None:
        """Check for notices during a validation: it has no gradients that could carry them.

        Raises:
            LeaveRequest: the workers are to leave.
        """
        # A gather of its own: whether any worker has heard must be known to all before they agree on more.
        self.check(step, any(self._attempt.group.gather(self.heard())))

    def check(self, step: int, heard: bool) -> bool:
        """Decide what to do after completed step `step`, if any worker has `heard` a notice; return whether to save.

        Raises:
            LeaveRequest: the workers are to leave.
        """
        if not (heard or self._notice):
            return False
        since = self._saver.seconds_since_save()
        # What each worker knows; all decide by the same values, so that all save or leave at the same step.
        views = self._attempt.group.gather(
            (
                self._host.notice(),
                self._saver.agreement.save_seconds,
                self._step_seconds,
                since,
            )
        )
        notices, saves, steps, sinces = zip(*views, strict=True)
        notice = merge(notices)
        self._note(notice, step)
        if notice is None:
            return False
        action = action_on(
            notice,
            save_seconds=max((s for s in saves if s is not None), default=None),
            step_seconds=max(steps),
            since_save=sinces[0] if sinces[0] <= notice.age else None,
        )
        if action is Action.LEAVE:
            raise LeaveRequest(notice)
        return action is Action.COMMIT

    def leaving(self, notice: HeardNotice, step: int, data_wait: float) -> LeavingError:
        """Return the error to leave with after `step`, when all is committed that can be.

        `data_wait`: seconds that steps have waited for data in this attempt.
        """
        committed = self._saver.agreement.committed_step
        left = WorkersLeft(
            reason=notice.reason, step=step, committed=committed, data_wait=round(data_wait, 3)
        )
        self._attempt.emit(left)
        return LeavingError(
            f"{notice.reason}: the workers left after step {step}, step {committed} is committed",
            final=notice.final,
        )

    def _note(self, notice: HeardNotice | None, step: int) -> None:
        old, self._notice = self._notice, notice
        if notice is None and old is not None:
            self._attempt.emit(PreemptionWithdrawn(reason=old.reason, step=step))
        elif notice is not None and (
            old is None or (notice.reason, notice.deadline) != (old.reason, old.deadline)
        ):
            self._attempt.emit(
                PreemptionNoticed(reason=notice.reason, deadline=notice.deadline, step=step)
            )
