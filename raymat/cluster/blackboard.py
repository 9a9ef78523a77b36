"""The board: one small actor beside the driver, where rank 0 pins what others must read.

It holds the window of the stream that the read tasks are to make, the newest progress for the
driver's line, what else the driver should print, the driver's wish that the workers leave, their signs
of life, why the controller gave up, and the task that validates beside training.
Nothing on it is state of the run: a board that is restarted is empty, and the next window or
progress fills it again.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymat.cluster.validation_task import ValidationTask

log = logging.getLogger(__name__)

ANSWER_SECONDS = 5.0
MAX_LINES = 10_000  # of a run that says much; all is in its events


@dataclass(frozen=True)
class Window:
    """A stretch of the stream: training steps, or validation batches, first..end (end excluded) for
    `world` workers."""

    kind: Literal["train", "valid"]
    first: int
    end: int
    world: int


class _Board:
    """The actor's class; `create` starts it."""

    def __init__(self) -> None:
        self._window: Window | None = None
        self._progress: Any = None
        self._lines: list[str] = []
        self._wish: Any = None
        self._heard: dict[int, tuple[float, Any]] = {}
        self._stuck: list[str] = []
        self._verdict: str | None = None
        self._stand = ValidationTask()

    def set_window(self, window: Window) -> None:
        self._window = window

    def window(self) -> Window | None:
        return self._window

    def set_progress(self, progress: Any) -> None:
        self._progress = progress

    def set_wish(self, wish: Any) -> None:
        if self._wish is None or not self._wish.final:  # a final one stays, whatever else is wished
            self._wish = wish

    def wish(self) -> Any:
        return self._wish

    def beat(self, rank: int, sign: Any) -> None:
        self._heard[rank] = (time.time(), sign)

    def heard(self) -> dict[int, tuple[float, Any]]:
        """By rank: when it was heard last (Unix seconds), and what it said it did."""
        return self._heard

    def set_stuck(self, text: str) -> None:
        self._stuck.append(text)

    def stuck(self) -> list[str]:
        """What the workers of this start stood still in, the first first."""
        return self._stuck

    def set_verdict(self, text: str) -> None:
        self._verdict = text

    def verdict(self) -> str | None:
        """Why the controller ended the run."""
        return self._verdict

    def begin_validation(self, job: Any, claim: dict[str, float], node: str) -> None:
        self._stand.begin(job, claim, node, ray.get_runtime_context().current_actor)

    def sign_validation(self, checkpoint: Any, who: str) -> None:
        self._stand.sign(checkpoint, who)

    def validation(self) -> Any:
        """How far it is: a `raymat.train.validation.interface.Standing`."""
        return self._stand.look()

    def end_validation(self) -> None:
        self._stand.end()

    def begin(self) -> None:
        """Workers are about to start: forget those before."""
        self.set_wish(None)
        self._heard, self._stuck = {}, []

    def say(self, line: str) -> None:
        if len(self._lines) < MAX_LINES:
            self._lines.append(line)

    def news(self, seen: int) -> tuple[Any, list[str]]:
        """The newest progress, and the lines after the first `seen`."""
        return self._progress, self._lines[seen:]


def ask(call: Any, otherwise: Any) -> Any:
    """What a call of the board's gives, or `otherwise` where it does not answer: nothing depends on it."""
    try:
        return ray.get(call, timeout=ANSWER_SECONDS)
    except (RayError, TimeoutError) as error:
        log.warning("the board does not answer: %s", error)
        return otherwise


def create() -> Any:
    """Start a board on the driver's own node, where no spot machine takes it away; returns its
    handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)(_Board)
    return actor.options(scheduling_strategy=here).remote()
