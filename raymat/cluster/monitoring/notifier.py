"""News of a run for whoever does not watch it: when it is told, and in which form."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from raymat.cluster.blackboard import Line
from raymat.cluster.monitoring.webhook import Webhooks, read_urls
from raymat.config.run import RunConfig
from raymat.console import age
from raymat.errors import RaymatError, StoppedError, first_line
from raymat.storage.urls import redact_text
from raymat.train.observability.attempt_events import WorkersFailed
from raymat.train.observability.progress import Progress
from raymat.train.run.notice import LeavingError

Kind = Literal["end", "stopped", "failure", "deaths", "no_commit"]


@dataclass(frozen=True)
class Alarm:
    """Something that is told: its kind, and a sentence."""

    kind: Kind
    text: str


class Alarms:
    """Decides when failures of workers and a long time without a commit are told."""

    def __init__(self, deaths: int, seconds: float, now: float) -> None:
        """`deaths`: failures that are no news. `seconds`: without a commit that are none, from `now` on, of any clock."""
        self._few, self._patience = deaths, seconds
        self._failures = 0
        self._committed: int | None = None
        self._since, self._told = now, False

    def look(self, failures: int, committed: int | None, now: float) -> list[Alarm]:
        """Return what is to be told.

        Args:
            failures: new failures of workers since the last look.
            committed: step of the newest commit.
            now: seconds, as when this was made.
        """
        self._failures += failures
        found = []
        if self._failures > self._few:
            text = f"workers failed {self._failures} times since the driver started"
            found.append(Alarm("deaths", text))
            self._few = 2 * self._failures - 1
        if committed != self._committed:
            self._committed, self._since, self._told = committed, now, False
        elif not self._told and now - self._since >= self._patience:
            self._told = True
            newest = "none so far" if committed is None else f"the newest is of step {committed}"
            found.append(Alarm("no_commit", f"no commit for {age(now - self._since)}, {newest}"))
        return found


class Notifier:
    """Posts a run's news to the webhooks that its user has named, while a block runs and when it ends."""

    def __init__(
        self, config: RunConfig, hooks: Webhooks, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock`: in seconds."""
        told = config.monitoring
        self._config, self._hooks, self._clock = config, hooks, clock
        self._alarms = Alarms(told.notify_deaths, told.notify_no_commit.seconds, clock())
        self._progress: Progress | None = None
        self._place = ""

    @classmethod
    def of(cls, config: RunConfig, say: Callable[[str], None]) -> Notifier:
        """Make the one of a run, from its options and the environment. `say`: takes lines for the terminal.

        Raises:
            ConfigError: a URL that cannot be posted to, or a file that cannot be read.
        """
        urls = read_urls(os.environ, config.monitoring.notify_file)
        return cls(config, Webhooks(urls, say))

    def __enter__(self) -> Notifier:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, StoppedError | LeavingError):
            self._tell(Alarm("stopped", error.line))
        elif isinstance(error, Exception):
            text = error.line if isinstance(error, RaymatError) else first_line(error)
            self._tell(Alarm("failure", redact_text(text, 500)))
        self._hooks.close()

    def found(self, place: str) -> None:
        """Note where the run lies, without secrets."""
        self._place = place

    def look(self, progress: Progress, lines: Sequence[Line]) -> None:
        """Take note of how far the run is, and of what it has said since the last look."""
        self._progress = progress
        failures = sum(line.kind == WorkersFailed.kind for line in lines)
        for alarm in self._alarms.look(failures, progress.commit_step, self._clock()):
            self._tell(alarm)

    def ended(self, text: str) -> None:
        """Tell that the run is complete."""
        self._tell(Alarm("end", text))

    def _tell(self, alarm: Alarm) -> None:
        if self._hooks:
            self._hooks.send(self._news(alarm))

    def _news(self, alarm: Alarm) -> Mapping[str, Any]:
        config, progress = self._config, self._progress
        return {
            "run": config.name,
            "stage": config.stage,
            "kind": alarm.kind,
            "text": f"{config.name}: {alarm.text}",
            "step": progress and progress.step,
            "total_steps": progress and progress.total_steps,
            "commit_step": progress and progress.commit_step,
            "attempt": progress and progress.attempt,
            "url": self._place,
            "host": socket.gethostname(),
            "time": round(time.time(), 3),
        }
