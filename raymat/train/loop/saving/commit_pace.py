"""When the next checkpoint is due beside those that the schedule fixes: by the interval that loses least, or by the loss."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from raymat.train.loop.attempt import Attempt
from raymat.train.loop.saving.checkpointing import Saved
from raymat.train.loop.state import RunState
from raymat.train.observability.checkpoint_events import IntervalChosen
from raymat.train.run.commit_interval import Costs, best_steps, next_interval

MEASURES = 8
"""Saves whose median counts."""


class CommitPace:
    """One worker's part. All workers call every method at the same steps."""

    def __init__(self, attempt: Attempt, state: RunState) -> None:
        self._attempt, self._state = attempt, state
        self._began, self._before = time.monotonic(), state.experience
        self._last = state.step
        """The newest step at which a checkpoint was due."""
        self._stalls, self._saves = (deque[float](maxlen=MEASURES) for _ in range(2))

    def due(self) -> bool:
        """Whether a checkpoint is due after this step by the interval, or at an epoch's end by a tenth of it.

        Never with a fixed interval, which the schedule knows.
        """
        schedule, step = self._attempt.schedule, self._state.step
        since, interval = step - self._last, self._state.experience.interval
        if schedule.checkpoint_interval is not None:
            return False
        return since >= interval or (schedule.ends_epoch(step) and 10 * since >= interval)

    def reached(self) -> bool:
        """Whether the newest validation, of this step, is the first at or below one of `--checkpoint-at-loss`."""
        thresholds = self._attempt.config.checkpoint.checkpoint_at_loss
        found = self._state.validations
        if thresholds is None or not found or found[-1].step != self._state.step:
            return False
        before = min((v.loss for v in found[:-1] if v.loss is not None), default=float("inf"))
        loss = found[-1].loss
        return loss is not None and any(
            loss <= threshold < before for threshold in thresholds.values
        )

    def begin(self) -> None:
        """Note that a checkpoint is due now, and what the run has been through, which it will hold."""
        self._last = self._state.step
        workers = self._attempt.group.world.size
        seconds = self._before.worker_seconds + workers * (time.monotonic() - self._began)
        self._state.experience = replace(self._state.experience, worker_seconds=seconds)

    def committed(self, saved: Iterable[Saved]) -> None:
        """Note what checkpoints have cost."""
        for one in saved:
            self._stalls.append(one.stall)
            self._saves.append(one.seconds)

    def adapt(self, step_seconds: float) -> None:
        """Choose the interval anew, by what rank 0 has measured: steps take `step_seconds`."""
        if self._attempt.schedule.checkpoint_interval is not None:
            return
        interval = self._attempt.group.on_lead(lambda: self._choose(step_seconds))
        self._state.experience = replace(self._state.experience, interval=interval)

    def _choose(self, step_seconds: float) -> int:
        known, now = self._state.experience, self._state.experience.interval
        if not self._saves or step_seconds <= 0:
            return now
        costs = Costs(
            step=step_seconds,
            stall=statistics.median(self._stalls),
            save=statistics.median(self._saves),
        )
        workers = self._attempt.group.world.size
        interval = next_interval(now, best_steps(costs, known, workers))
        if interval != now:
            self._attempt.emit(
                IntervalChosen(
                    step=self._state.step,
                    interval=interval,
                    step_seconds=costs.step,
                    stall=costs.stall,
                    save=costs.save,
                    losses=known.losses,
                    every=known.mean_seconds(workers),
                )
            )
        return interval
