"""Signals that stop a driver, which has its workers commit first: `ray job stop`, `kubectl delete`, a time limit, Ctrl-C, a
terminal that is closed.

At SIGTERM, SIGINT or SIGHUP the workers are asked to leave; they commit the step that they are at, and the command
ends with one line and the signal's exit code. The grace until SIGKILL is the sender's: `ray job stop` gives
RAY_JOB_STOP_WAIT_TIME_S, 3 s if the job does not set it. A second signal ends the driver at once. Under `nohup` a SIGHUP
does nothing.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from raymat.cluster.blackboard import Blackboard
from raymat.cluster.driver.say import say
from raymat.errors import RaymatError, StoppedError
from raymat.json_lines import plain
from raymat.train.run.notice import LeavingError, Notice

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def starting_processes() -> Iterator[None]:
    """Start a Ray of the driver's own in this block: its processes outlive a hang-up, so that workers can still commit, and a
    Ctrl-C is not forgotten, as it is where Python raises it in a hook that runs after a fork.

    Raises:
        KeyboardInterrupt: at the latest when the block ends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = False

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        raise KeyboardInterrupt

    hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which they inherit
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        signal.signal(signal.SIGINT, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, hang_up)
        if is_usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if heard:
        raise KeyboardInterrupt


class StopSignals:
    """Handles `SIGNALS` while a block runs, if that is in the main thread: Python knows no other way."""

    def __init__(self, board: Blackboard) -> None:
        self._board = board
        self._before: dict[signal.Signals, Any] = {}
        self._heard: signal.Signals | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def explain(self, error: RaymatError) -> RaymatError:
        """Return what to tell the user of the run's end by `error`: that it was stopped, if it was."""
        if self._heard is None or not isinstance(error, LeavingError):
            return error
        return StoppedError(
            f"stopped: {error.line}; the same command goes on from there",
            exit_code=128 + self._heard,
        )

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            if self._heard is not None:  # a closed terminal's kernel and shell send one each
                return
            _leave_terminal()
        if self._heard is not None:
            raise SystemExit(128 + number)
        self._heard = signal.Signals(number)
        say(f"{self._heard.name}: the workers commit and leave; once more ends this at once")
        notice = Notice(f"the driver was told to stop by {self._heard.name}", final=True)
        self._board.request_leave(notice)


def _leave_terminal() -> None:
    """Write nowhere what would go to a terminal: once that is closed, each line would be an error."""
    outputs = {1, 2}
    for stream in (sys.stdout, sys.stderr):  # while Ray runs the latter is a copy
        with suppress(OSError, ValueError):  # it is no file, or closed
            outputs.add(plain(stream).fileno())
    with open(os.devnull, "w") as nowhere:
        for output in outputs:
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(output).st_mode):
                    os.dup2(nowhere.fileno(), output)
