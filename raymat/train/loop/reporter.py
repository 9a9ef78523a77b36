"""What a run shows of itself: rows and pictures to its loggers, progress to its host, how long it took to start."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from raymat.checkpoint.manifest import CheckpointId
from raymat.train.loop.attempt import Attempt
from raymat.train.loop.interfaces import Host
from raymat.train.loop.state import RunState
from raymat.train.observability.fault_reports import MatteReport, ReplacementReport
from raymat.train.observability.image_grids import training_grids
from raymat.train.observability.logger_setup import (
    close_loggers,
    make_background_merge,
    make_loggers,
)
from raymat.train.observability.progress import Pace, Progress, StartClock
from raymat.train.observability.training_events import FirstStepDone
from raymat.train.observability.validation_events import ValidationDone
from raymat.train.validation.result import StoredResult


class Reporter:
    """One worker's; only rank 0's has loggers and shows anything."""

    def __init__(self, attempt: Attempt, host: Host) -> None:
        """Open the loggers. Called by all workers; raises on all of them.

        Raises:
            ConfigError: --logger cannot be used.
        """
        self._attempt, self._host = attempt, host
        names = attempt.config.log.logger
        self.loggers = make_loggers(attempt.logged, attempt.number, names, attempt.group)
        self._merge = make_background_merge(attempt.store, attempt.number, attempt.group)
        self.replaced = ReplacementReport(attempt.events)
        self.mattes = MatteReport(attempt.events, attempt.group.world)
        self.loss: float | None = None
        """The newest logged training loss; None where it was not finite."""
        self._commit: tuple[int, float] | None = None
        self._stall: float | None = None
        self._row: dict[str, Any] = {}
        self._pace, self._start = Pace(), StartClock()

    def resumed(self, step: int, checkpoint: CheckpointId | None) -> None:
        """Tell the loggers that the run goes on after `step`. Called by all workers; raises on all of them.

        Raises:
            StorageError: a logger could not clear away what comes again.
        """
        if checkpoint is not None:
            self._commit = (checkpoint.step, time.time())

        def resume() -> None:
            if self.loggers:
                self._host.require_lease()  # they delete what comes again
            for logger in self.loggers:
                logger.resumed(step)

        self._attempt.group.on_all(resume)

    def batch_arrived(self) -> None:
        """Note that the feed gave a batch."""
        self._start.batch_arrived()

    def step_ended(self, step: int) -> None:
        """Write how long the attempt took to its first step: what a restart costs ends here."""
        times = self._start.step_ended()
        if times is not None:
            self._attempt.emit(FirstStepDone(step=step, **times))

    def row(self, kind: str, step: int, loss: float | None, **fields: Any) -> None:
        """Log a row of completed step `step`."""
        if kind == "train":
            self.loss, self._row = loss, fields
            if self.loggers and (goodput := self._host.goodput()) is not None:
                fields["goodput"] = round(goodput, 4)
        schedule = self._attempt.schedule
        place = {
            "kind": kind,
            "step": step,
            "examples": schedule.examples(step),
            "epoch": schedule.epoch(step),
            "time": time.time(),
            "loss": loss,
        }
        for logger in self.loggers:
            logger.row(place | fields)

    def validation(
        self, step: int, result: StoredResult | None, waited: float, best: bool = False
    ) -> None:
        """Log the row of a validation and write its event.

        `waited`: seconds that training stood still for it. `best`: no validation so far is better.
        """
        if result is None:
            return
        self.replaced.add(result.replaced)
        found = result.found
        self.row(
            "valid",
            step,
            found.loss,
            digest=found.digest,
            count=found.count,
            metrics=found.metrics,
        )
        self._attempt.emit(
            ValidationDone(
                step=step,
                loss=found.loss,
                metrics=found.metrics,
                seconds=result.seconds,
                place=result.place,
                waited=waited,
                best=best,
            )
        )

    def images(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Log the grids of a training step's pictures."""
        grids = training_grids(pictures)
        for logger in self.loggers:
            logger.images(step, grids)

    def committed(self, checkpoint: CheckpointId, stall: float) -> None:
        """Note that `checkpoint` is the newest one, committed now; training stood still for it for `stall` seconds."""
        self._commit, self._stall = (checkpoint.step, time.time()), stall
        self._merge.committed()

    def finish(self) -> None:
        """Close the loggers, and leave the records of the complete run in few objects."""
        close_loggers(self.loggers)
        self._merge.finish()

    def progress(self, state: RunState) -> None:
        """Tell the host how far the run is."""
        attempt = self._attempt
        if not attempt.group.leads:
            return
        examples = state.cursor.next_example
        step, when = self._commit or (None, None)
        self._host.progress(
            Progress(
                stage=attempt.config.stage,
                step=state.step,
                total_steps=attempt.schedule.total_steps,
                examples_left=attempt.schedule.total_examples - examples,
                examples_per_second=self._pace.measure(examples),
                loss=self.loss,
                valid_loss=state.valid_loss,
                commit_step=step,
                commit_time=when,
                world=attempt.group.world.size,
                attempt=attempt.number,
                data_wait=self._row.get("data_wait", 0.0),
                step_seconds=self._row.get("step_seconds"),
                save_stall=self._stall,
                replaced=state.substitutes,
            )
        )

    def metrics(self, state: RunState) -> dict[str, Any]:
        """Return what a host is told with a commit, as far as it is finite: step, examples, the newest training loss,
        and the newest validation's (`valid_loss`, `valid_sad`, ...)."""
        found = {"step": state.step, "examples": state.cursor.next_example}
        values = {"loss": self.loss, "valid_loss": state.valid_loss}
        if state.validations:
            newest = state.validations[-1].metrics
            values |= {f"valid_{name}": value for name, value in newest.items()}
        return found | {name: value for name, value in values.items() if value is not None}
