"""What a run shows of itself: rows and pictures to its loggers, progress to its host. Only rank 0's does anything."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from raymat.checkpoint.manifest import CheckpointId
from raymat.distributed.collectives import Group
from raymat.errors import StorageError
from raymat.train.loop.interfaces import Host
from raymat.train.loop.schedule import Schedule
from raymat.train.loop.state import RunState
from raymat.train.observability.image_grids import training_grids
from raymat.train.observability.logger import Logger
from raymat.train.observability.progress import Progress


class Reporter:
    """One worker's; `loggers` are empty on all but rank 0."""

    def __init__(
        self,
        *,
        stage: str,
        schedule: Schedule,
        group: Group,
        host: Host,
        attempt: int,
        loggers: list[Logger],
    ) -> None:
        self.loggers = loggers
        self.loss: float | None = None
        """The newest logged training loss; None where it was not finite."""
        self._stage, self._schedule, self._group = stage, schedule, group
        self._host, self._attempt = host, attempt
        self._commit: tuple[int, float] | None = None
        self._pace = _Pace()

    def resumed(self, step: int) -> None:
        """Tell the loggers that the run goes on after `step`. Called by all workers; raises on all of them.

        Raises:
            StorageError: a logger could not clear away what comes again.
        """
        error = None
        try:
            for logger in self.loggers:
                logger.resumed(step)
        except StorageError as raised:
            error = raised
        self._group.raise_together(error)

    def row(self, kind: str, step: int, loss: float | None, **fields: Any) -> None:
        """A row of completed step `step`."""
        if kind == "train":
            self.loss = loss
        place = {
            "kind": kind,
            "step": step,
            "examples": self._schedule.examples(step),
            "epoch": self._schedule.epoch(step),
            "time": time.time(),
            "loss": loss,
        }
        for logger in self.loggers:
            logger.row(place | fields)

    def images(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """The grids of a training step's pictures."""
        grids = training_grids(pictures)
        for logger in self.loggers:
            logger.images(step, grids)

    def committed(self, checkpoint: CheckpointId) -> None:
        """`checkpoint` is the newest one, committed or restored now."""
        self._commit = (checkpoint.step, time.time())

    def progress(self, record: RunState) -> None:
        """Tell the host how far the run is."""
        if not self._group.leads:
            return
        examples = record.cursor.next_example
        step, when = self._commit or (None, None)
        self._host.progress(
            Progress(
                stage=self._stage,
                step=record.step,
                total_steps=self._schedule.total_steps,
                examples_left=self._schedule.total_examples - examples,
                examples_per_second=self._pace.measure(examples),
                loss=self.loss,
                valid_loss=record.valid_loss,
                commit_step=step,
                commit_time=when,
                world=self._group.world.size,
                attempt=self._attempt,
            )
        )

    def metrics(self, record: RunState) -> dict[str, Any]:
        """What a host is told with a commit: step, examples, the newest training loss, and what the newest validation
        found (`valid_loss`, `valid_sad`, ...), as far as it was finite."""
        found = {"step": record.step, "examples": record.cursor.next_example}
        values = {"loss": self.loss, "valid_loss": record.valid_loss}
        if record.validations:
            newest = record.validations[-1].metrics
            values |= {f"valid_{name}": value for name, value in newest.items()}
        return found | {name: value for name, value in values.items() if value is not None}


class _Pace:
    """Examples per second between calls, over at least a second."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._since: tuple[float, int] | None = None

    def measure(self, examples: int) -> float:
        """The pace when `examples` have been consumed; 0 before there is one."""
        now = time.monotonic()
        if self._since is None:
            self._since = (now, examples)
        seconds, count = now - self._since[0], examples - self._since[1]
        if seconds >= 1 and count:
            self._rate, self._since = count / seconds, (now, examples)
        return self._rate
