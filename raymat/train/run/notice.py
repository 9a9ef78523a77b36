"""Notices that machines of a run are about to be taken away, or that others have come, and what to do about them.

The worker that hears of one first tells all others with the gradients of the next step, so that listening costs a step
nothing. From then on, and only until the notice is dealt with, the workers agree after each step on what to do.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from raymat.errors import RaymatError

LEAVING_SECONDS = 2.0
"""From an error raised in the workers until none of them runs any more."""
SAFETY = 2.0
"""Factor by which a save may take longer than the ones before."""
FIRST_SAVE_SECONDS = 10.0
"""Assumed duration of a save, before one was measured."""
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
    """Unix seconds at which machines are taken away; None if there is no hurry."""
    heard: float = 0.0
    """Unix seconds at which it was first heard."""
    final: bool = False
    """Whether the workers must not be started again: the run is stopped, or another driver has it."""


class Action(enum.Enum):
    """What workers do about a notice after a step."""

    COMMIT = "commit"
    """Save now, and train on."""
    TRAIN = "train"
    """Train on: there is time for another step."""
    LEAVE = "leave"
    """Save, wait until it is committed, and leave."""


def merge(notices: Iterable[Notice | None]) -> Notice | None:
    """Merge notices into one: the earliest deadline, every reason once, heard when the newest was, final if one is."""
    found = [notice for notice in notices if notice is not None]
    if not found:
        return None
    deadlines = [notice.deadline for notice in found if notice.deadline is not None]
    reasons = dict.fromkeys(notice.reason for notice in found)
    return Notice(
        "; ".join(sorted(reasons)),
        min(deadlines, default=None),
        max(notice.heard for notice in found),
        any(notice.final for notice in found),
    )


def action_on(
    notice: Notice,
    now: float,
    *,
    save_seconds: float | None,
    step_seconds: float,
    since_save: float | None,
) -> Action:
    """Decide what to do `now` (Unix seconds) between two steps.

    `save_seconds`: measured from a snapshot to its commit; None before the first. `step_seconds`: duration of a step.
    `since_save`: seconds since the newest snapshot taken under this notice; None before the first.

    The last moment to leave is when a save, twice as slow as usual, and the step that is begun would still end before
    the deadline. Until then training goes on, and saves again whenever a save's time has passed since the one before.
    At a final notice the workers leave at once.
    """
    if notice.final:
        return Action.LEAVE
    save = FIRST_SAVE_SECONDS if save_seconds is None else save_seconds
    if notice.deadline is None:
        calm = now - notice.heard >= CALM_SECONDS
        return Action.LEAVE if calm else Action.TRAIN
    last_moment = notice.deadline - SAFETY * save - 2 * step_seconds - LEAVING_SECONDS
    if now >= last_moment:
        return Action.LEAVE
    if since_save is None or since_save >= max(SAFETY * save, 1.0):
        return Action.COMMIT
    return Action.TRAIN
