"""The driver's line of progress, and the lines that workers have it print."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TextIO

from ray.exceptions import RayError

from raymat.cluster.blackboard import Blackboard
from raymat.console import Display
from raymat.train.observability.progress import Progress

POLL_SECONDS = 1.0


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    whole = int(max(0.0, seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def progress_line(progress: Progress, now: float) -> str:
    """Format the progress for a user, in one line.

    `base 120/800  15.2 examples/s  loss 0.4312  commit 112, 0:00:12 ago  workers 2  restarts 1
    left 0:07:45`
    """
    rate = progress.examples_per_second
    loss = "-" if progress.loss is None else f"{progress.loss:.4f}"
    if progress.commit_step is None or progress.commit_time is None:
        commit = "none yet"
    else:
        commit = f"{progress.commit_step}, {clock(now - progress.commit_time)} ago"
    left = clock(progress.examples_left / rate) if rate > 0 else "-"
    return (
        f"{progress.stage} {progress.step}/{progress.total_steps}  {rate:.1f} examples/s  "
        f"loss {loss}  commit {commit}  workers {progress.world}  "
        f"restarts {progress.attempt - 1}  left {left}"
    )


class ProgressLine:
    """Shows how the run goes, and prints its news, while a block runs."""

    def __init__(self, board: Blackboard, stream: TextIO | None = None) -> None:
        self._board = board
        self._display = Display(stream)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raymat-progress", daemon=True)
        self._said = 0

    def __enter__(self) -> ProgressLine:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._poll(last=False)
        self._poll(last=True)

    def _poll(self, last: bool) -> None:
        try:
            progress, lines = self._board.news(self._said)
        except RayError:
            return  # the blackboard restarts by itself; a missed poll does no harm
        self._said += len(lines)
        for line in lines:
            self._display.print(line)
        if progress is not None and (last or self._display.due):
            self._display.show(progress_line(progress, time.time()), last)
