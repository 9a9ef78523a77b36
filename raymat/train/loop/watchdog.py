"""Detects a training thread that hangs.

A thread that hangs (in a read that never ends, in a collective that another worker left) can be neither asked nor
interrupted. So it records what it is about to do, and another thread watches the clock.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

CHECK_SECONDS = 1.0
"""How often the watchdog looks at the heartbeat."""
STACK_FRAMES = 12
"""How many of the innermost frames an Activity has."""


@dataclass(frozen=True)
class Activity:
    """What the training thread does."""

    what: str
    """For people: "waiting for a batch"."""
    step: int
    """Completed steps."""
    since: float
    """When it began or last showed progress, in Unix seconds."""
    stack: str = ""
    """Where in the code it is, a line for each frame, the innermost last."""


class Heartbeat:
    """The training thread's record of what it does; made and written by that thread, read by any other."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._doing = ("starting", 0)
        self._at = time.monotonic()

    def record_activity(self, what: str, step: int | None = None) -> None:
        """Record that the training thread begins `what`, or goes on with it. `step`: completed ones; default: as before."""
        self._doing = (what, self._doing[1] if step is None else step)
        self._at = time.monotonic()

    def idle_seconds(self) -> float:
        """Return the seconds since the last record."""
        return time.monotonic() - self._at

    def activity(self) -> Activity:
        """Return what the training thread does now, with its stack."""
        (what, step), seconds = self._doing, self.idle_seconds()
        frame = sys._current_frames().get(self._thread)
        stack = traceback.extract_stack(frame, limit=None)[-STACK_FRAMES:] if frame else []
        lines = [f"{entry.filename}:{entry.lineno} {entry.name}" for entry in stack]
        return Activity(what, step, time.time() - seconds, "\n".join(lines))


class Watchdog:
    """A thread that notices when the heartbeat stops, as a context manager around the training."""

    def __init__(
        self, heartbeat: Heartbeat, limit: float, on_stuck: Callable[[Activity], None]
    ) -> None:
        """Call `on_stuck` once, in the watchdog's thread, after `limit` seconds without a record."""
        self._heartbeat, self._limit, self._on_stuck = heartbeat, limit, on_stuck
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stuck-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(CHECK_SECONDS, self._limit / 4)):
            if self._heartbeat.idle_seconds() > self._limit:
                self._on_stuck(self._heartbeat.activity())
                return
