"""What to do about a notice that machines of this run are about to be taken away, or that others have come.

Whoever hears of it first lets all workers know with the gradients of the next step, so that listening costs a step
nothing; from then on, and only until the notice is dealt with, the workers agree after each step on what to do.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from raymat.errors import RaymatError

LEAVING_SECONDS = 2.0
"""From raising an error in the workers until nothing of them runs any more."""
SAFETY = 2.0
"""A save may take this much longer than the ones before."""
FIRST_SAVE_SECONDS = 10.0
"""What a save is taken to last before any was measured."""
CALM_SECONDS = 2.0
"""Notices come in groups: without a deadline the workers stay this long after the newest, to leave once for all."""


class LeavingError(RaymatError):
    """The workers leave on purpose, with everything committed that could be: start them again where there is room.

    `final`: they are not to be started again. It survives pickling, as all that crosses from a worker must.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True)
class Notice:
    """That this run's workers should start anew somewhere else."""

    reason: str
    """For people: what goes or comes, as in "node 1f93 is drained"."""
    deadline: float | None = None
    """Unix seconds at which machines are taken away; None: no haste."""
    heard: float = 0.0
    """Unix seconds."""
    final: bool = False
    """The workers are not to be started again: the run is stopped, or goes on under another driver."""


class Action(enum.Enum):
    """What follows from a notice after a step."""

    COMMIT = "commit"
    """Save now, and train on."""
    TRAIN = "train"
    """There is time for another step."""
    LEAVE = "leave"
    """Save, wait until it is committed, and leave."""


def merge(notices: Iterable[Notice | None]) -> Notice | None:
    """One notice for all: the earliest deadline, every reason once, heard when the newest was, final if one is."""
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
    """What to do `now` (Unix seconds) between two steps.

    `save_seconds`: from a snapshot until it is committed, as measured; None before any was. `step_seconds`: of a
    step. `since_save`: seconds since the newest snapshot that was taken under this notice; None before the first.

    The last moment to leave is when a save, twice as slow as usual, and the step that is begun would still end before
    the deadline. Until then training goes on, and saves again whenever a save's time has passed since the one before.
    A final notice waits for nothing: whoever gave it wants the workers gone.
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
