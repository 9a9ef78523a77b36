"""The workers' way from a notice to their last commit: what they agree upon between steps once any of them has heard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from raymat.distributed.collectives import Group
from raymat.train.loop.checkpointing import AsyncSaver
from raymat.train.loop.interfaces import Host
from raymat.train.run.notice import Action, LeavingError, Notice, action_on, merge


class PreemptionHandler:
    """One worker's part. `heed` and `listen` are called by all workers, at the same places."""

    def __init__(
        self,
        group: Group,
        host: Host,
        saver: AsyncSaver,
        *,
        tell: Callable[..., None],
        commit: Callable[..., None],
    ) -> None:
        """`tell` writes an event once for all; `commit` saves, and with `until` (Unix seconds) waits for the commit."""
        self._group, self._host, self._saver = group, host, saver
        self._tell, self._commit = tell, commit
        self._notice: Notice | None = None
        self._ended = time.monotonic()
        self._pace = 0.0

    def heard(self) -> bool:
        """Whether this worker has heard something that still holds."""
        return self._host.notice() is not None

    def step_ended(self) -> None:
        """Called after each step: how long steps take decides how late the workers may leave."""
        now = time.monotonic()
        seconds, self._ended = now - self._ended, now
        self._pace = max(seconds, 0.9 * self._pace)

    def listen(self, step: int) -> None:
        """Between the batches of a validation, where no gradients go round to hear by. No save is taken but the last.

        Raises:
            LeavingError: the workers are to leave.
        """
        self.heed(step, any(self._group.gather(self.heard())), may_save=False)

    def heed(self, step: int, heard: bool, *, may_save: bool = True) -> None:
        """After completed step `step`: deal with what any worker has `heard`.

        Raises:
            LeavingError: the workers are to leave.
        """
        if not (heard or self._notice):
            return
        since = self._saver.since_save()
        views = self._group.gather(
            (self._host.notice(), self._saver.save_seconds, self._pace, time.time(), since)
        )
        notices, saves, paces, times, sinces = zip(*views, strict=True)
        notice = merge(notices)
        self._note(notice, step)
        if notice is None:
            return
        action = action_on(
            notice,
            times[0],
            save_seconds=max((s for s in saves if s is not None), default=None),
            step_seconds=max(paces),
            since_save=sinces[0] if times[0] - sinces[0] >= notice.heard else None,
        )
        if action is Action.LEAVE:
            self._leave(notice, step)
        elif action is Action.COMMIT and may_save:
            self._commit()

    def _note(self, notice: Notice | None, step: int) -> None:
        old, self._notice = self._notice, notice
        if notice is None and old is not None:
            self._tell("notice_withdrawn", reason=old.reason, step=step)
        elif notice is not None and (
            old is None or (notice.reason, notice.deadline) != (old.reason, old.deadline)
        ):
            self._tell("notice", reason=notice.reason, deadline=notice.deadline, step=step)

    def _leave(self, notice: Notice, step: int) -> None:
        """Commit what can be committed before the deadline, and go."""
        self._commit(until=math.inf if notice.deadline is None else notice.deadline)
        committed = self._saver.committed_step
        self._tell("leave", reason=notice.reason, step=step, committed=committed)
        raise LeavingError(
            f"{notice.reason}: the workers left after step {step}, step {committed} is committed",
            final=notice.final,
        )
