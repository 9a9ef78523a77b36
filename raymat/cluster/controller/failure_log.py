"""Failures of workers as Ray's controller sees them, written to the run's events."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import UserCallback, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymat.cluster.blackboard import Blackboard, Line, SignOfLife
from raymat.cluster.controller.failure_policy import cause_first, is_fatal, raymat_error
from raymat.cluster.ray_train_internals import WorkerHealthCheckTimeoutError, unwrap
from raymat.cluster.worker.notice_listener import POLL_SECONDS, SIGN_POLLS
from raymat.storage.store import Store
from raymat.train.observability.attempt_events import LastSign, WorkersFailed
from raymat.train.observability.events import EventLog
from raymat.train.run.notice import LeavingError

SILENCE_SECONDS = 2 * SIGN_POLLS * POLL_SECONDS
"""A worker that was silent for longer was stuck before it died, and its stack is of interest."""


class FailureLog(UserCallback):
    """A hook of Ray's controller that writes a `failure` event for each worker group that failed.

    The event has each worker's error, and where the worker was and what it did when it was last heard.
    """

    def __init__(self, store: Store, board: Blackboard) -> None:
        self._store = store
        self._board = board
        self._events: EventLog | None = None

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Write the event when workers raised or died; called by the controller."""
        error = WorkerGroupError("", worker_exceptions)
        if isinstance(raymat_error(error), LeavingError):
            return  # no failure: the workers' own event says where and why they left
        signs = self._board.signs()
        errors = cause_first(worker_exceptions)
        last = {
            str(rank): last_sign(signs[rank], now=time.time())
            for rank in sorted(worker_exceptions)
            if rank in signs
        }
        event = WorkersFailed(ranks=errors, last=last)
        self._log().emit(event)
        for rank in worker_exceptions.keys() & signs.keys():
            if isinstance(unwrap(worker_exceptions[rank]), WorkerHealthCheckTimeoutError):
                end_frozen(signs[rank])
        if not is_fatal(error):  # a fatal one is the last line of the command
            line = "; ".join(f"rank {rank}: {what}" for rank, what in errors.items())
            self._board.print_line(Line(f"workers failed: {line}", event.level, event.kind))

    def _log(self) -> EventLog:
        if self._events is None:
            self._events = EventLog.for_driver(self._store)
        return self._events


def end_frozen(sign: SignOfLife) -> None:
    """Kill a worker that does not answer, since Ray waits half a minute or longer for a suspended one to go.

    Returns at once: if the whole machine is frozen, the kill never runs.
    """
    there = NodeAffinitySchedulingStrategy(sign.node, soft=False)
    kill = ray.remote(num_cpus=0, max_retries=0)(_kill_worker)
    kill.options(scheduling_strategy=there).remote(sign.pid)


def _kill_worker(pid: int) -> None:
    """Kill the process, unless its id belongs to another program by now."""
    with contextlib.suppress(OSError):
        if b"ray" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def last_sign(sign: SignOfLife, *, now: float) -> LastSign:
    """Return a worker's last sign of life; with its stack if it had fallen silent."""
    doing, silent = sign.doing, now - sign.heard
    last = LastSign(
        host=sign.host,
        pid=sign.pid,
        silent=round(silent, 1),
        doing=doing.what,
        step=doing.step,
        since=doing.since,
    )
    if silent > SILENCE_SECONDS:
        last["stack"] = doing.stack
    return last
