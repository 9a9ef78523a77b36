"""How far a run is and how fast: a small value for whoever shows it, and the clocks behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
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
    data_wait: float = 0.0
    """Share of its time for which training waits for data, as of the newest row."""
    step_seconds: float | None = None
    """Mean duration of a step, as of the newest row."""
    save_stall: float | None = None
    """Seconds that training stood still for the newest commit of this attempt."""
    replaced: int = 0
    """Examples of the run that were trained with a substitute for a picture that cannot be read."""
    goodput: float | None = None
    """Share of all workers' time that was training which counts, as the driver's newest look at the run's events has it."""


class StepClock:
    """Where one worker's steps spend their time, from one row of metrics to the next.

    A step lasts from the wish for its batch to its end; validations and saves between steps are no part of it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock`: in seconds; read three times a step and once a row."""
        self._clock = clock
        self._last = clock()
        self.data_wait = 0.0
        """Seconds that steps have waited for their batch since the first one, whose wait is the start's."""
        self._first = True
        self._waited = self._seconds = self._row_seconds = 0.0
        self._steps = self._examples = 0

    def batch_awaited(self) -> None:
        """Note that a step begins: it wants its batch."""
        self._lap()

    def batch_arrived(self) -> None:
        """Note that the batch is there."""
        waited = self._lap()
        self.data_wait += 0.0 if self._first else waited
        self._first = False
        self._waited += waited
        self._seconds += waited

    def step_ended(self, examples: int) -> None:
        """Note the end of a step of `examples`, of all workers together."""
        self._seconds += self._lap()
        self._steps += 1
        self._examples += examples

    @property
    def step_seconds(self) -> float:
        """Seconds of a step since the last row, or in the row before if there was none since; 0 before the first."""
        return self._seconds / self._steps if self._steps else self._row_seconds

    def read(self) -> tuple[dict[str, float], float]:
        """Return the columns of a row that this clock knows, and the share of time that the steps waited for data;
        start anew. What came after the last step's end (until now, when its loss is known) is still its.
        """
        self._seconds += self._lap()
        self._row_seconds = self._seconds / max(1, self._steps)
        columns = {
            "step_seconds": self._row_seconds,
            "examples_per_second": self._examples / self._seconds if self._seconds else 0.0,
        }
        waited = self._waited / self._seconds if self._seconds else 0.0
        self._waited = self._seconds = 0.0
        self._steps = self._examples = 0
        return columns, waited

    def _lap(self) -> float:
        now = self._clock()
        lap, self._last = now - self._last, now
        return lap


class StartClock:
    """Measures how long an attempt takes to its first batch and to the end of its first step."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._batch: float | None = None
        self._done = False

    def batch_arrived(self) -> None:
        """Note the time of the first batch."""
        if self._batch is None:
            self._batch = time.monotonic() - self._began

    def step_ended(self) -> dict[str, float] | None:
        """Return the seconds to the end of the first step and to its batch; None after any later step."""
        if self._done or self._batch is None:
            return None
        self._done = True
        return {"seconds": time.monotonic() - self._began, "batch": self._batch}


class Pace:
    """Examples per second between calls, over at least a second."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._since: tuple[float, int] | None = None

    def measure(self, examples: int) -> float:
        """Return the pace when `examples` have been consumed; 0 before there is one."""
        now = time.monotonic()
        if self._since is None:
            self._since = (now, examples)
        seconds, count = now - self._since[0], examples - self._since[1]
        if seconds >= 1 and count:
            self._rate, self._since = count / seconds, (now, examples)
        return self._rate
