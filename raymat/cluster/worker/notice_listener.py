"""A worker's thread that listens for the end of its machine and for the driver's requests, twice a second.

Ray announces a machine's end as the drain of its node, with a deadline. Ray Train passes it on to a training function too,
but by a round trip through an actor in which all ranks must take part, and not when it is withdrawn; so this asks the
cluster's state itself.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import ray
from ray.exceptions import RayError

from raymat.cluster.blackboard import Blackboard, SignOfLife
from raymat.cluster.ray_internals import draining_nodes
from raymat.train.loop.watchdog import Heartbeat
from raymat.train.run.notice import HeardNotice, Hearing, Notice, merge

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SIGN_POLLS = 4
"""Polls from one sign of life to the next."""
HOST = socket.gethostname()

_sigterms: list[float] = []
"""When this process got a SIGTERM, in Unix seconds."""


def handle_sigterm() -> None:
    """Take each SIGTERM to this process for a notice from now on; call this in its main thread.

    Whoever sends it (a user, `kubectl delete`, a time limit) means the process to be gone within a grace period that
    nobody tells; Ray would end it at once.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: _sigterms.append(time.time()))


class NoticeListener:
    """One rank's listening thread, which also gives its signs of life. Rank 0's hears the driver's requests too."""

    def __init__(self, board: Blackboard, rank: int) -> None:
        self._board, self._rank = board, rank
        self._heartbeat: Heartbeat | None = None
        self._polls = 0
        self._node = ray.get_runtime_context().get_node_id()
        self._heard: dict[str, Hearing | None] = dict.fromkeys(("signal", "drain", "request"))
        """What each source said last."""
        self._request = board.poll_leave_request()
        self._reckoned = board.poll_goodput()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="notices", daemon=True)
        self._thread.start()

    def notice(self) -> HeardNotice | None:
        """Return the notice that holds now."""
        return merge(heard.now() if heard else None for heard in self._heard.values())

    def register_heartbeat(self, heartbeat: Heartbeat) -> None:
        """Show the blackboard what the training thread does from now on."""
        self._heartbeat = heartbeat

    @property
    def goodput(self) -> float | None:
        """The run's, as the driver has told it; known to rank 0 alone."""
        return self._reckoned.latest

    def stop(self) -> None:
        """Stop listening."""
        self._ended.set()

    def _listen(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            # Sources are asked one by one: one that fails must not keep the others waiting, a deadline is running.
            self._hear("signal", self._signal)
            self._hear("drain", self._drain)
            if self._rank == 0:
                self._hear("request", lambda: self._request.update(POLL_SECONDS / 2))
            try:
                self._sign()
            except (
                Exception
            ):  # a thread that ends hears no notice, and its worker is taken for frozen
                log.exception("cannot give a sign of life")

    def _hear(self, source: str, ask: Callable[[], Notice | None]) -> None:
        try:
            said, known = ask(), self._heard[source]
            if known is None or known.notice != said:
                self._heard[source] = None if said is None else Hearing(said)
        except (RayError, ConnectionError, TimeoutError, RuntimeError) as error:
            # A head that restarts does not answer for some seconds; what was heard still holds.
            log.warning("cannot ask for notices (%s): %s", source, error)
        except Exception:
            log.exception("cannot ask for notices (%s): unexpected error", source)

    def _sign(self) -> None:
        self._polls += 1
        if self._heartbeat is not None and self._polls % SIGN_POLLS == 0:
            sign = SignOfLife(HOST, self._node, os.getpid(), self._heartbeat.activity())
            self._board.sign(self._rank, sign)
        if self._rank == 0 and self._polls % SIGN_POLLS == 0:
            self._reckoned.update()

    def _signal(self) -> Notice | None:
        if not _sigterms:
            return None
        return Notice(f"worker {os.getpid()} on {HOST} was told to end")

    def _drain(self) -> Notice | None:
        nodes = draining_nodes()
        if self._node not in nodes:
            return None
        return Notice(f"node {self._node[:8]} is drained", nodes[self._node])
