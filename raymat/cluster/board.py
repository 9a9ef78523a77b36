"""The board: one small actor beside the driver, where rank 0 pins what others must read.

It holds the window of the stream that the read tasks are to make, the newest progress for the
driver's line, what else the driver should print, and the driver's wish that the workers leave.
Nothing on it is state of the run: a board that is restarted is empty, and the next window or
progress fills it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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

    def set_window(self, window: Window) -> None:
        self._window = window

    def window(self) -> Window | None:
        return self._window

    def set_progress(self, progress: Any) -> None:
        self._progress = progress

    def set_wish(self, wish: Any) -> None:
        self._wish = wish

    def wish(self) -> Any:
        return self._wish

    def say(self, line: str) -> None:
        if len(self._lines) < MAX_LINES:
            self._lines.append(line)

    def news(self, seen: int) -> tuple[Any, list[str]]:
        """The newest progress, and the lines after the first `seen`."""
        return self._progress, self._lines[seen:]


def set_wish(board: Any, wish: Any) -> None:
    """Put a wish on the board, or take it away (None); nobody waits for it."""
    board.set_wish.remote(wish)


def create() -> Any:
    """Start a board on the driver's own node, where no spot machine takes it away; returns its
    handle."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)(_Board)
    return actor.options(scheduling_strategy=here).remote()
