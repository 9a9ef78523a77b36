"""The drain of this machine's node, which tells Ray that the machine will be taken.

Ray's client ends its whole process if the head stays away for a minute, and a call may hang. So a process of its own,
`python -m raymat.cluster.spot.drain`, connects to the head beforehand and waits for the order: on a busy machine the
start of a Python that imports Ray takes longer than a notice may leave. The process that gives the order imports no Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raymat.cluster.spot.metadata import Interruption
from raymat.cluster.spot.ray_start import end_ray_start
from raymat.errors import ClusterError

DRAIN_SECONDS = 10.0
"""Limit of one order, also to a process that has still to start and to connect."""
RESTART_SECONDS = 30.0
"""Between two starts of the process while no order is due: each costs a second of a core."""
CONNECT_SECONDS = 2.0
DRAINED, REFUSED = "drained ", "refused "
"""How the process begins its answers; whatever else it prints is Ray's."""

Drain = Callable[[Interruption], str]
"""Has Ray drain this node, and returns the node's id in hex. Raises ClusterError if Ray did not accept."""


class DrainProcess:
    """A process that is connected to Ray's head and waits for the order to drain this node: a `Drain`.

    Args:
        address: Ray's head as HOST:PORT; None for the head of this machine's node.
        node: the node's id in hex; None for this machine's only node.
        say: called with a line for people.
    """

    def __init__(self, address: str | None, node: str | None, say: Callable[[str], None]) -> None:
        self._place, self._node, self._say = json.dumps([address, node]), node, say
        self._process: subprocess.Popen[bytes] | None = None
        self._started = float("-inf")
        self._heard = b""
        """What came of the next line."""
        self._last = ""
        """The last line of the process."""

    def prepare(self) -> None:
        """Have the process ready; call this again and again. One that has ended is started anew, now and then."""
        if self._alive:
            self._read_line(0.0)  # a pipe that is full would stop it
        elif time.monotonic() - self._started >= RESTART_SECONDS:
            with contextlib.suppress(OSError):  # the order says so, if it stays so
                self._start()

    def __call__(self, notice: Interruption) -> str:
        """Give the order, by SIGTERM to `ray start --block` if no answer comes. Raises ClusterError."""
        order = json.dumps([notice.reason, int((notice.deadline or 0) * 1000)])
        try:
            return self._give(order.encode() + b"\n")
        except OSError as error:
            self.close()
            why = str(error) or f"Ray did not answer within {DRAIN_SECONDS:.0f} s"
            try:
                node, starter = end_ray_start(self._node)
            except ClusterError as other:
                raise ClusterError(f"{why}; {other.line}") from None
            self._say(f"{why}: SIGTERM to process {starter}, `ray start`, which drains the node")
            return node

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    @property
    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        self.close()
        self._started, self._heard, self._last = time.monotonic(), b"", ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, self._place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Python looks there first: in the working directory may be anything, a torch.py or a ray/ of the user's.
            cwd=Path(__file__).resolve().parents[3],
        )

    def _give(self, order: bytes) -> str:
        if not self._alive:
            self._start()
        process, deadline = self._process, time.monotonic() + DRAIN_SECONDS
        assert process is not None
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just ended, and says why
            process.stdin.write(order)
            process.stdin.flush()
        while (line := self._read_line(deadline - time.monotonic())) is not None:
            if line.startswith(DRAINED):
                return line.removeprefix(DRAINED)
            if line.startswith(REFUSED):
                raise ClusterError(line.removeprefix(REFUSED))
        raise ConnectionAbortedError(self._last or f"the process ended with {process.wait()}")

    def _read_line(self, seconds: float) -> str | None:
        """Return the next line of the process, "" if a `seconds` of 0 brought none, None at its end. Raises TimeoutError."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._heard:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                if seconds == 0.0:
                    return ""
                raise TimeoutError
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                return None
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        text = line.decode(errors="replace").strip()
        self._last = text or self._last
        return text


def _drain_once(client: Any, node: str | None, known: str, order: str) -> str:
    """Drain a node: the `known` one if it lives, else what is found now; return its id in hex. Raises ClusterError."""
    from raymat.cluster.ray_internals import alive_nodes, drain_node

    reason, deadline_ms = json.loads(order)
    if known not in alive_nodes(client):
        known = _node(client, node)
    refusal = drain_node(client, known, reason, deadline_ms)
    if refusal is not None:
        raise ClusterError(f"node {known[:8]}: {refusal}")
    return known


def _client(address: str | None) -> Any:
    """Connect to the head. Raises ClusterError if this machine has no node, or several of different heads."""
    from raymat.cluster.ray_internals import gcs_client, local_heads, resolve_address

    if address is None:
        found = local_heads()
        if len(found) != 1:
            raise ClusterError(
                f"one Ray node should run here, found {len(found)}: start Ray or give --address"
            )
        address = found[0]
    address = resolve_address(address)
    _knock(address)
    return gcs_client(address)


def _knock(address: str) -> None:
    """Raise ClusterError if nothing listens at HOST:PORT: Ray's client would wait for a minute without a word."""
    host = urlsplit(f"//{address}")
    try:
        socket.create_connection((host.hostname, host.port), CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"Ray's head at {address}: {error.strerror or error}") from None


def _node(client: Any, wanted: str | None) -> str:
    """Return the id in hex of the node to drain: `wanted`, or the one that runs on this machine.

    Raises ClusterError if it is not alive, which Ray would accept, or if this machine runs none, or several.
    """
    from raymat.cluster.ray_internals import alive_nodes, local_nodes

    alive = alive_nodes(client)
    if wanted is not None:
        if wanted not in alive:
            raise ClusterError(f"node {wanted[:8]} is not alive")
        return wanted
    here = sorted(local_nodes() & alive)
    if len(here) != 1:
        raise ClusterError(f"one node of Ray should run here, found {len(here)}: give --node-id")
    return here[0]


def _serve(place: str) -> int:
    """Connect, then follow orders, a line each, until standard input ends; return the exit code."""
    from ray.exceptions import RayError

    address, node = json.loads(place)
    try:
        client = _client(address)
        known = _node(client, node)
        for order in sys.stdin:
            print(DRAINED + _drain_once(client, node, known, order), flush=True)
    except ClusterError as error:
        print(REFUSED + error.line, flush=True)
        return 1
    except (RayError, OSError, RuntimeError, ValueError) as error:
        print(REFUSED + " ".join(f"{type(error).__name__}: {error}".split())[:300], flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1]))
