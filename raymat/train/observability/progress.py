"""A run's progress as one small value, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The state of a run at one moment; picklable."""

    stage: str
    step: int
    """Completed steps."""
    total_steps: int
    examples_left: int
    """Examples up to the run's end."""
    examples_per_second: float
    """Of all workers together, since the last progress; 0 in the first."""
    loss: float | None
    """The newest logged training loss; None before the first, or if it was not finite."""
    valid_loss: float | None
    """The newest validation loss."""
    commit_step: int | None
    """Step of the newest committed checkpoint, of this attempt or an earlier one."""
    commit_time: float | None
    """When it was committed or, after a restart, restored; Unix seconds."""
    world: int
    """Workers."""
    attempt: int
    """Number of the attempt; 1 for a run that was never restarted."""
