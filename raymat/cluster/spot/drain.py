"""The drain of this machine's node, which tells Ray that the machine will be taken.

Ray's client ends its whole process if the head stays away for a minute, and a call may hang. So each attempt is a process
of its own, `python -m raymat.cluster.spot.drain`, and the process that asks for it imports no Ray.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from raymat.cluster.spot.metadata import Interruption
from raymat.errors import ClusterError

DRAIN_SECONDS = 10.0
"""Limit of one attempt, with the start of its process (about a second) and a head that is slow to answer."""
CONNECT_SECONDS = 2.0

Drain = Callable[[Interruption], str]
"""Has Ray drain this node, and returns the node's id in hex. Raises ClusterError if Ray did not accept."""


def drain_by_process(address: str | None, node: str | None) -> Drain:
    """Return a drain that starts a process for each attempt.

    Args:
        address: Ray's head as HOST:PORT; None for the head of this machine's node.
        node: the node's id in hex; None for this machine's only node.
    """

    def drain(notice: Interruption) -> str:
        deadline_ms = int((notice.deadline or 0) * 1000)
        order = json.dumps([address, node, notice.reason, deadline_ms])
        command = [sys.executable, "-m", __spec__.name, order]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=DRAIN_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"Ray did not answer within {DRAIN_SECONDS:.0f} s") from None
        except OSError as error:
            raise ClusterError(f"cannot start a process: {error}") from None
        lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if done.returncode != 0:
            raise ClusterError(last or f"the process ended with {done.returncode}")
        return last

    return drain


def _drain_once(address: str | None, node: str | None, reason: str, deadline_ms: int) -> str:
    """Drain a node, and return its id in hex. `deadline_ms`: Unix milliseconds, 0 for none. Raises ClusterError."""
    from raymat.cluster.ray_internals import drain_node

    client = _client(address)
    node = _node(client, node)
    refusal = drain_node(client, node, reason, deadline_ms)
    if refusal is not None:
        raise ClusterError(f"node {node[:8]}: {refusal}")
    return node


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


def _attempt(order: str) -> int:
    """Make one attempt, in a process of its own; return the exit code."""
    from ray.exceptions import RayError

    address, node, reason, deadline_ms = json.loads(order)
    try:
        print(_drain_once(address, node, reason, deadline_ms))
    except ClusterError as error:
        print(error.line, file=sys.stderr)
        return 1
    except (RayError, OSError, RuntimeError, ValueError) as error:
        print(" ".join(f"{type(error).__name__}: {error}".split())[:300], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_attempt(sys.argv[1]))
