"""The `ray start --block` of this machine, which drains its node by itself on SIGTERM: the way that needs no process of ours."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from raymat.errors import ClusterError


def end_ray_start(node: str | None) -> tuple[str, int]:
    """Send SIGTERM to the `ray start --block` of a node that runs here; return the node's id in hex and the process's.

    Args:
        node: id in hex; None for this machine's only node.

    Raises:
        ClusterError: no such node runs here, or no `ray start --block` holds it.
    """
    found = {name: pid for name, pid in _raylets() if node in (None, name)}
    if len(found) != 1:
        raise ClusterError(f"one node of Ray should run here, found {len(found)}")
    ((name, raylet),) = found.items()
    starter = _parent(raylet)
    words = _words(starter)
    if "start" not in words or "--block" not in words:
        raise ClusterError(f"node {name[:8]} was started without `ray start --block`")
    try:
        os.kill(starter, signal.SIGTERM)
    except OSError as error:
        raise ClusterError(f"SIGTERM to process {starter}: {error.strerror}") from None
    return name, starter


def _raylets() -> Iterator[tuple[str, int]]:
    """Yield the node and the process of each raylet on this machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = _words(int(entry.name))
            if words and os.path.basename(words[0]) == "raylet":
                for word in words:
                    flag, _, value = word.partition("=")
                    if flag in ("--node_id", "--node-id"):
                        yield value, int(entry.name)


def _words(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    return []


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
