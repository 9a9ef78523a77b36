"""The watch over the Ray that a driver stands on: when it is gone, the run ends within seconds, with one line."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import ray

from raymat.cluster.driver.say import warn
from raymat.cluster.ray_internals import end_own_ray, ended_own_process, log_folder, responds
from raymat.errors import RayLostError
from raymat.json_lines import JsonLines

POLL_SECONDS = 0.5
HEAD_SECONDS = 5.0
"""Between two questions whether the head answers."""
SILENT_SECONDS = 45.0
"""From the last answer until the head is given up: after 60 s Ray's client ends the whole process."""
ENDING_SECONDS = 5.0
"""How long a raylet may take to end after it has ended the actors of this run."""
AGAIN = "give the same command again, and the run goes on from its newest checkpoint"


class RayWatch:
    """The watch over this process's Ray, whose loss Ray's own client answers with silence for a minute and a dead process."""

    def __init__(self, own: bool) -> None:
        """`own`: Ray was started for this run: its processes are this one's children, and no machine joins."""
        self.own = own
        self._head = ray.get_runtime_context().gcs_address
        self._heard = self._asked = time.monotonic()
        self._said = False
        self.lost = False
        """Whether Ray is gone: nothing may be asked of it any more."""

    def call(self, action: Callable[[], object]) -> None:
        """Call `action` in a thread of its own, and raise what it raises.

        Raises:
            RayLostError: Ray is gone; the thread is left behind.
        """
        pool = ThreadPoolExecutor(1, thread_name_prefix="raymat-fit")
        try:
            running = pool.submit(action)
            while not wait([running], timeout=POLL_SECONDS).done:
                self._raise_if_silent()
                self.raise_if_dead()
            running.result()
        finally:
            pool.shutdown(wait=False)

    def raise_if_dead(self) -> None:
        """Raise a RayLostError if one of Ray's processes that this one started has ended."""
        dead = ended_own_process() if self.own else None
        if dead is not None:
            where = log_folder()
            self._give_up(f"Ray's {dead}" + (f" (its logs: {where})" if where else ""))

    def raise_if_gone(self, patience: float = 0.0) -> None:
        """Raise a RayLostError if Ray has died, or its head does not answer at this moment.

        `patience`: seconds in which one of Ray's processes may still be ending: a raylet ends its workers first.
        """
        until = time.monotonic() + (patience if self.own else 0.0)
        self.raise_if_dead()
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS / 5)
            self.raise_if_dead()
        if not responds(self._head):
            self._give_up(f"the head of the Ray cluster, {self._head}, does not answer any more")

    def end(self) -> None:
        """End what is left of a Ray that was lost; a head is not asked."""
        if self.own:
            end_own_ray()

    def _raise_if_silent(self) -> None:
        now = time.monotonic()
        if now - self._asked < HEAD_SECONDS:
            return
        self._asked = now
        if responds(self._head):
            self._heard, self._said = now, False
        elif now - self._heard >= SILENT_SECONDS:
            self.raise_if_gone()
        elif not self._said and now - self._heard >= 2 * HEAD_SECONDS:
            self._said = True
            warn(
                f"the head of the Ray cluster, {self._head}, does not answer: waiting for it for {SILENT_SECONDS:.0f} s"
            )

    def _give_up(self, what: str) -> None:
        self.lost = True
        raise RayLostError(f"{what}: {AGAIN}")


@contextlib.contextmanager
def quiet_terminal(watch: RayWatch) -> Iterator[None]:
    """Send what C++ code of this process says into a file among Ray's logs; Python's lines go where they went.

    After a loss it stays so: Ray's client has still much to say while the process ends.
    """
    folder = log_folder()
    if folder is None or not _writes_to(2, sys.stderr):
        yield
        return
    before, terminal = sys.stderr, os.dup(2)
    lines = open(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    sys.stderr = before.onto(lines) if isinstance(before, JsonLines) else lines
    try:
        with open(Path(folder) / f"raymat-driver-{os.getpid()}.err", "ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        if not watch.lost:
            os.dup2(terminal, 2)
            sys.stderr = before
            with contextlib.suppress(OSError):  # what it could not write either
                lines.close()


def _writes_to(number: int, stream: object) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(stream.fileno() == number)  # type: ignore[attr-defined]
    return False
