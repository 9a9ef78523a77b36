"""What a worker hears of its machine's end, and of the driver's wishes, by a thread that asks twice a second.

Ray's own word for it is the drain of a node, with a deadline. Ray Train tells a training function of it too, but by a
round trip through an actor in which all ranks must take part, and not when it is withdrawn; so this asks the cluster's
state itself, which is a private interface: `draining_nodes` is all that knows it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from raymat.cluster.ray_internals import draining_nodes
from raymat.train.loop.watchdog import Activity, Heartbeat
from raymat.train.run.notice import Notice, merge

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SHOW_POLLS = 4
"""So often it hears before it gives a sign of life."""
HOST = socket.gethostname()


@dataclass(frozen=True)
class Sign:
    """A worker's sign of life."""

    host: str
    node: str
    """Ray's id of it, in hex."""
    pid: int
    doing: Activity


_told_to_end: list[float] = []
"""Unix seconds of the SIGTERMs that this process was sent."""


def handle_sigterm() -> None:
    """From now on a SIGTERM to this process is a notice. To be called in its main thread.

    Who sends it (a user, `kubectl delete`, a time limit) means the process to be gone within some grace that nobody
    tells; Ray would end it at once.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: _told_to_end.append(time.time()))


class NoticeListener:
    """One rank's ears, and its sign of life. Rank 0 also hears what the driver wishes."""

    def __init__(self, board: Any, rank: int) -> None:
        self._board, self._rank = board, rank
        self._pulse: Heartbeat | None = None
        self._polls = 0
        self._node = ray.get_runtime_context().get_node_id()
        self._notice: Notice | None = None
        self._heard: dict[str, Notice | None] = {"signal": None, "drain": None, "wish": None}
        """What each source said last."""
        self._asked: Any = None
        """The board, for its wish."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="notices", daemon=True)
        self._thread.start()

    def notice(self) -> Notice | None:
        """What holds now."""
        return self._notice

    def attend(self, pulse: Heartbeat) -> None:
        """From now on let the board know what the training thread does."""
        self._pulse = pulse

    def stop(self) -> None:
        """Hear no more."""
        self._ended.set()

    def _listen(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            # One that is asked in vain must not keep the others waiting: a deadline is running.
            self._hear("signal", self._signal)
            self._hear("drain", self._drain)
            if self._rank == 0:
                self._hear("wish", self._wish)
            self._show()

    def _hear(self, source: str, ask: Callable[[], Notice | None]) -> None:
        try:
            self._heard[source] = ask()
        except (RayError, ConnectionError, TimeoutError, RuntimeError) as error:
            # A head that restarts does not answer for some seconds; what was heard still holds.
            log.warning("cannot ask for notices (%s): %s", source, error)
        found = merge(self._heard.values())
        self._notice = self._dated(found) if found else None

    def _show(self) -> None:
        self._polls += 1
        if self._pulse is not None and self._polls % SHOW_POLLS == 0:
            self._board.beat.remote(
                self._rank, Sign(HOST, self._node, os.getpid(), self._pulse.look())
            )

    def _signal(self) -> Notice | None:
        if not _told_to_end:
            return None
        return Notice(f"worker {os.getpid()} on {HOST} was told to end")

    def _drain(self) -> Notice | None:
        nodes = draining_nodes()
        if self._node not in nodes:
            return None
        reason = f"node {self._node[:8]} is drained"
        return Notice(reason, nodes[self._node])

    def _wish(self) -> Notice | None:
        """The board's answer, or the one before where that takes its time."""
        if self._asked is None:
            self._asked = self._board.wish.remote()
        ready, _ = ray.wait([self._asked], timeout=POLL_SECONDS / 2)
        if ready:
            self._asked = None
            self._heard["wish"] = ray.get(ready[0])
        return self._heard["wish"]

    def _dated(self, new: Notice) -> Notice:
        """`new` with the time at which it was first heard."""
        old = self._notice
        known = old is not None and (old.reason, old.deadline) == (new.reason, new.deadline)
        heard = old.heard if old is not None and known else time.time()
        return dataclasses.replace(new, heard=heard)
