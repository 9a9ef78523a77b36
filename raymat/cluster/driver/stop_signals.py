"""Signals that stop a driver, which has its workers commit first: `ray job stop`, `kubectl delete`, a time limit, Ctrl-C.

At SIGTERM or SIGINT the workers are asked to leave; they commit the step that they are at, and the command
ends with one line and the signal's exit code. The grace until SIGKILL is the sender's: `ray job stop` gives
RAY_JOB_STOP_WAIT_TIME_S, 3 s if the job does not set it. A second signal ends the driver at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from raymat.cluster.blackboard import Blackboard
from raymat.cluster.driver.say import say
from raymat.errors import RaymatError, StoppedError
from raymat.train.run.notice import LeavingError, Notice

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Handles SIGINT and SIGTERM while a block runs, if that is in the main thread: Python knows no other way."""

    def __init__(self, board: Blackboard) -> None:
        self._board = board
        self._before: dict[signal.Signals, Any] = {}
        self._heard: signal.Signals | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
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
        if self._heard is not None:
            raise SystemExit(128 + number)
        self._heard = signal.Signals(number)
        say(f"{self._heard.name}: the workers commit and leave; once more ends this at once")
        notice = Notice(f"the driver was told to stop by {self._heard.name}", final=True)
        self._board.request_leave(notice)
