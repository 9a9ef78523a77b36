"""Notices that machines of a run are about to be taken away, or that others have come, and what to do about them.

The worker that hears of one first tells all others with the gradients of the next step, so that listening costs a step
nothing. From then on, and only until the notice is dealt with, the workers agree after each step on what to do. Only the worker
that hears of a deadline compares it with a clock, its machine's own; all others are told how many seconds are left.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from raymat.errors import RaymatError

LEAVING_SECONDS = 2.0
"""From an error raised in the workers until none of them runs any more."""
SAFETY = 2.0
"""Factor by which a save may take longer than the ones before."""
FIRST_SAVE_SECONDS = 10.0
"""Assumed duration of a save, before one was measured."""
LEAST_WAIT_SECONDS = 20.0
"""How long the workers wait for their last commit, even if the deadline is past: where they can still save, clocks differ."""
CALM_SECONDS = 2.0
"""How long workers stay after the newest notice without a deadline: notices come in groups, and one leave will do."""


class LeavingError(RaymatError):
    """The workers leave on purpose, with everything committed that could be, to be started again where there is room.

    `final`: they are not to be started again. Survives pickling, as all that crosses from a worker must.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True)
class Notice:
    """A reason for this run's workers to leave, and to start again somewhere else."""

    reason: str
    """For people: which machine goes or comes, as in "node 1f93 is drained"."""
    deadline: float | None = None
    """Unix seconds at which machines are taken away, by the clock of whoever hears of it; None if there is no hurry."""
    final: bool = False
    """Whether the workers must not be started again: the run is stopped, or another driver has it."""


@dataclass(frozen=True)
class HeardNotice(Notice):
    """A notice at one moment, as it travels between workers: in seconds from and until then, since clocks differ."""

    age: float = 0.0
    """Seconds since it was first heard."""
    left: float | None = None
    """Seconds until the deadline, below 0 after it; None if there is none."""


class Hearing:
    """A notice in the process that has heard it, from that moment on."""

    def __init__(self, notice: Notice) -> None:
        self.notice = notice
        self._began = time.monotonic()
        self._left = None if notice.deadline is None else notice.deadline - time.time()

    def now(self) -> HeardNotice:
        """Return the notice as it is now."""
        age = time.monotonic() - self._began
        left = None if self._left is None else self._left - age
        notice = self.notice
        return HeardNotice(notice.reason, notice.deadline, notice.final, age, left)


class Action(enum.Enum):
    """What workers do about a notice after a step."""

    COMMIT = "commit"
    """Save now, and train on."""
    TRAIN = "train"
    """Train on: there is time for another step."""
    LEAVE = "leave"
    """Save, wait until it is committed, and leave."""


def merge(notices: Iterable[HeardNotice | None]) -> HeardNotice | None:
    """Merge notices into one: the least time left, every reason once, heard when the newest was, final if one is."""
    found = [notice for notice in notices if notice is not None]
    if not found:
        return None
    hurried = [notice for notice in found if notice.left is not None]
    first = min(hurried, key=lambda notice: notice.left or 0.0, default=found[0])
    reasons = dict.fromkeys(notice.reason for notice in found)
    return replace(
        first,
        reason="; ".join(sorted(reasons)),
        final=any(notice.final for notice in found),
        age=min(notice.age for notice in found),
    )


def action_on(
    notice: HeardNotice,
    *,
    save_seconds: float | None,
    step_seconds: float,
    since_save: float | None,
) -> Action:
    """Decide what to do between two steps.

    `save_seconds`: measured from a snapshot to its commit; None before the first. `step_seconds`: duration of a step.
    `since_save`: seconds since the newest snapshot taken under this notice; None before the first.

    The last moment to leave is when a save, twice as slow as usual, and the step that is begun would still end before
    the deadline. Until then training goes on, and saves again whenever a save's time has passed since the one before.
    At a final notice the workers leave at once.
    """
    if notice.final:
        return Action.LEAVE
    save = FIRST_SAVE_SECONDS if save_seconds is None else save_seconds
    if notice.left is None:
        return Action.LEAVE if notice.age >= CALM_SECONDS else Action.TRAIN
    if notice.left <= SAFETY * save + 2 * step_seconds + LEAVING_SECONDS:
        return Action.LEAVE
    if since_save is None or since_save >= max(SAFETY * save, 1.0):
        return Action.COMMIT
    return Action.TRAIN
