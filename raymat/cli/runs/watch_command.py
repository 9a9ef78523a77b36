"""`raymat watch`: follows a run from anywhere that can read its storage."""

from __future__ import annotations

import copy
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from raymat.analysis.event_words import line_of, words_of
from raymat.analysis.runs.outlook import Outlook, RunFollower
from raymat.config.command_line import parse_options
from raymat.config.options import Url
from raymat.console import Display, Screen, age, bar, cells, count, cut, printable
from raymat.errors import NewerFormatError, StorageError
from raymat.storage.retry import RetryPolicy
from raymat.storage.urls import redact_urls
from raymat.train.run.run_url import meant_run, open_run_url

POLL_SECONDS = 2.0
_PATIENCE = RetryPolicy(total=4.0)
_BAR = 30
_KILLED = 143
_NOT_COMPLETE = 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """Follow a run: progress, loss, commits, goodput, and what happens to it. On a terminal one screen, else lines.

    Steps reach storage with commits; between them the step is reckoned by the pace (~). Storage that fails is asked again
    until it answers. Ends with the run. Exit code: 0 when it is complete, 1 when its driver has stopped or died before, 2
    if there is no such run, 130 after Ctrl-C.
    """

    url: Url
    """The run: STORAGE/NAME, any fsspec URL."""
    through_stops: bool = False
    """Go on when the driver stops or dies, until the run is complete: somebody starts it again."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat watch URL` and return the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat watch")
    store = copy.copy(open_run_url(options.url))
    store.retry = _PATIENCE
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(_KILLED)
    )  # so that the terminal is left in order
    follower = RunFollower(store)
    outlook = follower.read()
    if not outlook.summary.stage:
        raise StorageError(
            f"there is no run to watch at {store.url}: {outlook.summary.reason}{meant_run(store)}"
        )
    page: _Lines | _Page = _Page() if sys.stdout.isatty() else _Lines()
    with page.opened():
        while True:
            page.show(outlook)
            if (code := _exit_code(outlook, options.through_stops)) is not None:
                break
            outlook = _read_next(follower, page, outlook)
    page.end(outlook)
    return code


def _exit_code(outlook: Outlook, through_stops: bool) -> int | None:
    state = outlook.summary.state
    if state == "complete":
        return 0
    return _NOT_COMPLETE if state in ("stopped", "died") and not through_stops else None


def _read_next(follower: RunFollower, page: _Lines | _Page, last: Outlook) -> Outlook:
    """Wait, and read how the run goes, until the storage answers."""
    since = time.monotonic()
    while True:
        time.sleep(POLL_SECONDS)
        try:
            found = follower.read()
            trouble = "" if found.summary.stage else found.summary.reason
        except NewerFormatError:
            raise
        except StorageError as error:
            trouble = error.line
        if not trouble:
            return found
        page.show(last, f"no answer for {age(time.monotonic() - since)}: {redact_urls(trouble)}")


class _Page:
    """A screen that shows how a run goes."""

    def __init__(self) -> None:
        self._screen = Screen(sys.stdout)

    def opened(self) -> AbstractContextManager[object]:
        return self._screen

    def show(self, outlook: Outlook, trouble: str = "") -> None:
        columns, lines = self._screen.size
        self._screen.show(screen_lines(outlook, time.time(), columns, lines, trouble))

    def end(self, outlook: Outlook) -> None:
        columns, lines = self._screen.size
        print("\n".join(screen_lines(outlook, time.time(), columns, lines)))


class _Lines:
    """Lines for a pipe: what happens, and now and then how far the run is."""

    def __init__(self) -> None:
        self._display = Display(sys.stdout)
        self._said: int | None = None
        self._trouble = False

    def opened(self) -> AbstractContextManager[object]:
        return nullcontext()

    def show(self, outlook: Outlook, trouble: str = "") -> None:
        if self._said is None:
            self._display.show(status_line(outlook, time.time()))
            self._said = len(outlook.events)
        for event in outlook.events[self._said :]:
            self._display.print(line_of(event))
        self._said = len(outlook.events)
        if trouble and not self._trouble:
            self._display.print(trouble)
        elif self._display.due and not trouble:
            self._display.show(status_line(outlook, time.time()))
        self._trouble = bool(trouble)

    def end(self, outlook: Outlook) -> None:
        self._display.show(status_line(outlook, time.time()))


def status_line(outlook: Outlook, now: float) -> str:
    """Return how a run goes in one line, as in `base training  ~1240/5000  loss 0.0431  goodput 97.1%  commit 1200, 12 s ago`."""
    s = outlook.summary
    parts = [
        f"{s.stage} {_state(outlook)}",
        _steps(outlook),
        *_pace(outlook),
        *_standing(outlook, now),
    ]
    parts.append(_best(outlook))
    return "  ".join(part for part in parts if part)


def screen_lines(
    outlook: Outlook, now: float, columns: int, lines: int, trouble: str = ""
) -> list[str]:
    """Return what a screen of so many `columns` and `lines` shows of a run; `now` in Unix seconds."""
    s = outlook.summary
    part = outlook.step / s.steps if s.steps else 0.0
    left = outlook.seconds_left
    ahead = f"about {age(left)} left" if left and s.state == "training" else ""
    stands = f"{s.name}  {s.stage}  {_state(outlook)}" + (f": {s.reason}" if s.reason else "")
    shares = [f"{cause} {share:.1%}" for cause, share in outlook.shares.items() if share >= 0.0005]
    head = [
        f"{_filled(stands, columns - 10)}  {time.strftime('%H:%M:%S', time.gmtime(now))}",
        "  ".join(filter(None, (bar(part, _BAR), _steps(outlook), f"{part:.0%}", ahead))),
        "  ".join(_pace(outlook)),
        "  ".join(_standing(outlook, now)),
        _best(outlook),
        "  ".join(shares),
        trouble,
    ]
    room = max(0, lines - len(head))
    news = [_news(event) for event in outlook.events[-room:]] if room else []
    return [cut(line, columns) for line in [*head, *news]]


def _filled(text: str, columns: int) -> str:
    text = cut(printable(text), columns)
    return text + " " * (columns - cells(text))


def _news(event: Mapping[str, Any]) -> str:
    clock = time.strftime("%m-%d %H:%M:%S", time.gmtime(event.get("time", 0.0)))
    return f"{clock}  {words_of(event)}"


def _state(outlook: Outlook) -> str:
    """Return the run's state; until its lease was seen renewed or not, nobody knows it."""
    state = outlook.summary.state
    return "(does its driver live? up to 20 s)" if state == "unclear" else state


def _steps(outlook: Outlook) -> str:
    s = outlook.summary
    return f"{'~' if outlook.step > s.step else ''}{outlook.step}/{s.steps or '?'}"


def _pace(outlook: Outlook) -> list[str]:
    """Return what the newest row of training says; empty before there is one."""
    row = outlook.row or {}
    shown = {
        "loss": "loss {:.4g}",
        "examples_per_second": "{:.1f} examples/s",
        "step_seconds": "{:.3g} s a step",
        "data_wait": "{:.0%} of it for data",
    }
    values = {name: row.get(name) for name in shown}
    return [
        shown[name].format(value)
        for name, value in values.items()
        if isinstance(value, int | float)
    ]


def _standing(outlook: Outlook, now: float) -> list[str]:
    s = outlook.summary
    commit = "no commit yet"
    if s.committed is not None:
        commit = f"commit {s.step}, {age(now - s.committed)} ago"
    goodput = "" if s.goodput is None else f"goodput {s.goodput:.1%}"
    world = "" if s.workers is None else f"{count(s.workers, 'worker')}, attempt {s.attempts}"
    return [part for part in (commit, goodput, world) if part]


def _best(outlook: Outlook) -> str:
    s = outlook.summary
    return "" if s.best is None else f"best {s.metric} {s.best:.4g} at {s.best_step}"
