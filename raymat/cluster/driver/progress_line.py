"""The driver's line of progress, and the lines that workers have it print."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TextIO

from ray.exceptions import RayError

from raymat.cluster.blackboard import Blackboard, Line
from raymat.cluster.driver.goodput_meter import GoodputMeter
from raymat.console import Display, age
from raymat.json_lines import json_context, tell
from raymat.train.loop.watchdog import Activity
from raymat.train.observability.progress import Progress

POLL_SECONDS = 1.0
STANDS_SECONDS = 10.0
"""Without a step, after which a run stands still; longer where a step takes more than a third of it."""
WORTH_TELLING = 0.05
"""Share of the time for which training waits for data that its line tells of."""


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    whole = int(max(0.0, seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def progress_line(
    progress: Progress,
    now: float,
    width: int | None = None,
    standing: str | None = None,
) -> str:
    """Format the progress for a user, in one line of at most `width` columns: what matters less is left out.

    `base 120/800  left 0:07:45  15.2 examples/s  loss 0.4312  commit 112, 12 s ago`

    Args:
        now: Unix seconds.
        standing: why the run stands still, in place of its pace.
    """
    rate, complete = progress.examples_per_second, progress.step >= progress.total_steps
    waits = progress.data_wait
    paced = rate > 0 and not standing
    first, *others = [
        f"{progress.stage} {progress.step}/{progress.total_steps}",
        *([standing] if standing else []),
        *([f"left {clock(progress.examples_left / rate)}"] if paced and not complete else []),
        *([f"{rate:.1f} examples/s"] if paced else []),
        *([f"waits {waits:.0%} for data"] if paced and waits >= WORTH_TELLING else []),
        *([] if progress.loss is None else [f"loss {progress.loss:.4f}"]),
        *_commit(progress, now),
        *([] if progress.goodput is None else [f"goodput {progress.goodput:.1%}"]),
        *([f"restarts {progress.attempt - 1}"] if progress.attempt > 1 else []),
        f"workers {progress.world}",
    ]
    line = first
    for part in others:
        if width is None or len(line) + 2 + len(part) <= width:
            line += f"  {part}"
    return line


def _commit(progress: Progress, now: float) -> list[str]:
    if progress.commit_step is None or progress.commit_time is None:
        return ["no commit yet"] if progress.step else []
    return [f"commit {progress.commit_step}, {age(now - progress.commit_time)} ago"]


class Standstill:
    """Tells for how long no step has been completed, where that is longer than steps take."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: in seconds."""
        self._clock = clock
        self._step: int | None = None
        self._since = clock()
        self._usual = 0.0

    def seconds(self, step: int) -> float | None:
        """Return the seconds since the run came to `step`; None while that is no standstill."""
        now = self._clock()
        if step != self._step:
            if self._step is not None and step > self._step:
                self._usual = (now - self._since) / (step - self._step)
            self._step, self._since = step, now
        stood = now - self._since
        return stood if stood >= max(STANDS_SECONDS, 3 * self._usual) else None


Observer = Callable[[Progress, Sequence[Line]], None]
"""Takes, each second, how far the run is and what it has said since; must return at once."""


class ProgressLine:
    """Shows how the run goes, and prints its news, while a block runs."""

    def __init__(
        self,
        board: Blackboard,
        first: Progress,
        stream: TextIO | None = None,
        goodput: GoodputMeter | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """`first` is shown until the workers have told their own; `observers` are told of what is shown."""
        self._observers = observers
        self._board, self._progress, self._goodput = board, first, goodput
        self._display, self._standstill = Display(stream), Standstill()
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
            news = self._board.news(self._said)
        except RayError:
            return  # the blackboard restarts by itself; a missed poll does no harm
        self._said += len(news.lines)
        for said in news.lines:
            self._print(said)
        if news.progress is not None:
            self._progress = news.progress
            if (context := json_context()) is not None:
                context.at(self._progress.attempt, self._progress.step)
        if self._goodput is not None:
            self._progress = dataclasses.replace(self._progress, goodput=self._goodput.value)
        for observe in self._observers:
            observe(self._progress, news.lines)
        standing = None if last else self._standing(news.doing)
        if last or self._display.due:
            width = self._display.width
            line = progress_line(self._progress, time.time(), width, standing)
            self._display.show(line, last)

    def _print(self, line: Line) -> None:
        if json_context() is None:
            self._display.print(line.text)
        else:
            about = {"kind": line.kind, "attempt": line.attempt, "rank": line.rank}
            tell(line.text, line.level, **about, step=line.step)

    def _standing(self, doing: Activity | None) -> str | None:
        """Return that the run stands still, for how long and why; None if it does not.

        By the workers' signs of life: they tell their progress only now and then.
        """
        step = doing.step if doing and doing.step else self._progress.step
        stood = self._standstill.seconds(step)
        if stood is None:
            return None
        return f"no step for {age(stood)}: {doing.what if doing else 'workers start'}"
