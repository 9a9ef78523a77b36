"""What the training thread is doing, for those who watch whether it still does anything.

A thread that hangs (in a read that never ends, in a collective that somebody left) can be neither asked nor
interrupted. So it says beforehand what it turns to, and another thread looks at the clock.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

LOOK_SECONDS = 1.0
STACK_FRAMES = 12
"""The innermost ones are told."""


@dataclass(frozen=True)
class Activity:
    """What the training thread does."""

    what: str
    """For people: "waiting for a batch"."""
    step: int
    """Completed steps."""
    since: float
    """Unix seconds at which it turned to it."""
    stack: str = ""
    """Where in the code it is, a line for each frame, the innermost last."""


class Heartbeat:
    """Made and beaten by the training thread, read by any other."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._doing = ("starting", 0)
        self._at = time.monotonic()

    def beat(self, what: str, step: int) -> None:
        """The training thread turns to `what`, or goes on with it."""
        self._doing, self._at = (what, step), time.monotonic()

    def seconds(self) -> float:
        """Since the last beat."""
        return time.monotonic() - self._at

    def look(self) -> Activity:
        """What goes on now, with the stack."""
        (what, step), seconds = self._doing, self.seconds()
        frame = sys._current_frames().get(self._thread)
        stack = traceback.extract_stack(frame, limit=None)[-STACK_FRAMES:] if frame else []
        lines = [f"{entry.filename}:{entry.lineno} {entry.name}" for entry in stack]
        return Activity(what, step, time.time() - seconds, "\n".join(lines))


class Watchdog:
    """A thread that notices when the pulse stops. A context manager around what beats it."""

    def __init__(self, pulse: Heartbeat, limit: float, stuck: Callable[[Activity], None]) -> None:
        """`stuck` is called once, in the watch's thread, when there was no beat for `limit` seconds."""
        self._pulse, self._limit, self._stuck = pulse, limit, stuck
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stuck-watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(LOOK_SECONDS, self._limit / 4)):
            if self._pulse.seconds() > self._limit:
                self._stuck(self._pulse.look())
                return
