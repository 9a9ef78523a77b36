"""Several nodes of a real Ray cluster on this one machine: added, drained, killed, frozen while a run trains on them.

A node is a raylet, the processes that it started, and an object store of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster

from raymat.cluster.driver.launch import fit
from raymat.config.run import RunConfig
from raymat.storage.store import Store
from tests.support.kit import starts
from tests.support.paths import ROOT

STORE_BYTES = 2**28


class Nodes:
    """A head without room for workers, and nodes with room for one worker and its read tasks each.

    All methods are to be called in the main thread: nodes can be started in no other.
    """

    def __init__(self, slow: bool = False) -> None:
        """`slow`: the head looks for dead nodes as Ray's defaults have it, not as cluster.yaml does."""
        # Blocks of tiny pictures would travel inside of messages; real ones lie in the nodes' object stores.
        settings = {"max_direct_call_object_size": 4096} | ({} if slow else health_checks())
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 1,
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
                "_system_config": settings,
            },
        )
        ray.init(address=self.cluster.address, log_to_driver=False)
        self.added: list[Any] = []

    def add(self) -> Any:
        return self.add_together(1)[0]

    def add_together(self, count: int) -> list[Any]:
        """Nodes that come at the same time."""
        new = [self._start(num_cpus=2) for _ in range(count)]
        for node in new:
            self.cluster._wait_for_node(node)
        self.added += new
        return new

    def add_reader(self) -> Any:
        """A node with room for a read task but, half of its one core being kept for those, for no worker. Not in `added`."""
        node = self._start(num_cpus=1)
        self.cluster._wait_for_node(node)
        return node

    def _start(self, num_cpus: int) -> Any:
        return self.cluster.add_node(num_cpus=num_cpus, object_store_memory=STORE_BYTES, wait=False)

    def drain(self, node: Any, seconds: float) -> None:
        """What a spot watcher does when it is told that its machine will be reclaimed."""
        deadline = int((time.time() + seconds) * 1000)
        client = ray._raylet.GcsClient(address=self.cluster.address)
        # 2: preempted, as against idle
        accepted, why = client.drain_node(node.node_id, 2, "reclaimed", deadline)
        assert accepted, why

    def kill(self, node: Any) -> None:
        """Take the machine away: its raylet, all of its workers, and what lies in its object store."""
        workers = processes_of(node)
        self.cluster.remove_node(node, allow_graceful=False)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if node in self.added:
            self.added.remove(node)

    def freeze(self, node: Any) -> None:
        """The machine stands still: its connections stay open, and nothing answers. `kill` ends it."""
        for pid in [raylet(node), *processes_of(node)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def stop(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def health_checks() -> dict[str, int]:
    """How the head looks for dead nodes, as every cluster's head does."""
    text = (ROOT / "deploy/node/env.sh").read_text(encoding="utf-8")
    found = re.findall(r"RAY_(health_check_\w+)=(\d+)", text)
    return {name: int(value) for name, value in found}


def raylet(node: Any) -> int:
    """The process that is a node's heart."""
    (info,) = node.all_processes["raylet"]
    pid: int = info.process.pid
    return pid


def processes_of(node: Any) -> list[int]:
    """What a node's raylet started: workers, read tasks, actors, agents."""
    children = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and parent_of(int(entry.name)) == raylet(node):
            children.append(int(entry.name))
    return children


def decodes(node: Any) -> bool:
    """Whether a read task of a run's stream is at work there."""
    for pid in processes_of(node):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::ReadMicroBatch"):
                return True
    return False


def parent_of(pid: int) -> int | None:
    """None: there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text.rpartition(")")[2].split()[1])


def stored_bytes(node: Any) -> int:
    """How much lies in a node's object store."""
    (found,) = [each for each in ray.nodes() if each["NodeID"] == node.node_id]
    address = (found["NodeManagerAddress"], found["NodeManagerPort"])
    stats = node_stats(*address, include_memory_info=False)
    used: int = stats.store_stats.object_store_bytes_used
    return used


def fit_disturbed(config: RunConfig, disturb: Callable[[], None]) -> None:
    """Train while `disturb` runs. That is done here, in the main thread: nodes can be started in no other."""
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(fit, config)
        disturb()
        training.result()


def worlds(store: Store) -> list[int]:
    """The number of workers of each attempt."""
    return [start["world"] for start in starts(store)]
