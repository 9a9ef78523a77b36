"""Private interfaces of Ray Core, and the environment variables that tune Ray Train.

Everything here may change with any release of Ray: `tests/cluster/test_ray_internals.py` tries each function on its own.
Ray Train's are in `raymat.cluster.ray_train_internals`, which takes seconds to import; this file takes less than one.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import ray
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray._private.node import Node
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as SETUP_HOOK
from ray._private.utils import get_shared_memory_bytes, get_system_memory, get_used_memory
from ray.core.generated.common_pb2 import PYTHON
from ray.core.generated.gcs_pb2 import GcsNodeInfo
from ray.core.generated.gcs_service_pb2 import UnregisterNodeRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.core.generated.node_manager_pb2 import GetWorkerPIDsRequest, PrestartWorkersRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

from raymat.errors import ClusterError

__all__ = [
    "IDLE_TERMINATION",
    "SETUP_HOOK",
    "alive_nodes",
    "apply_settings",
    "available_bytes",
    "check_ray_version",
    "declare_dead",
    "drain_node",
    "draining_nodes",
    "end_own_ray",
    "ended_own_process",
    "gcs_client",
    "hush_cluster",
    "is_head",
    "local_heads",
    "local_nodes",
    "log_folder",
    "only_what_a_run_needs",
    "prestart_worker",
    "raylet_address",
    "recorded_head",
    "resolve_address",
    "responds",
    "worker_pids",
]

log = logging.getLogger(__name__)

TESTED_RAY = (2, 60)
ANSWER_SECONDS = 3.0
"""A process that does not answer within this time is taken for frozen."""
ANSWERS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
"""Errors that only a living process gives."""
RAYLET_SECONDS = 2.0
PREEMPTION = 2
"""`DRAIN_NODE_REASON_PREEMPTION` in Ray's autoscaler.proto: the only drain that Ray never refuses on a busy node."""

MONITORS = ("start_monitor", "start_log_monitor")
"""Methods of Ray's Node that start the autoscaler's monitor and the one that brings workers' output to a driver's terminal."""

IDLE_TERMINATION, UNEXPECTED_TERMINATION = 4, 2
"""Why a node is dead, as `NodeDeathInfo` in Ray's common.proto and `ray.nodes()` number it."""

RAY_TRAIN_SETTINGS = {
    # Ray's defaults cost seconds per report and restart.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A worker that does not answer the poll is frozen (Ray's default: 600 s). A thread of its own answers the polls;
    # a training thread that hangs is found by raymat.train.loop.watchdog.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "10",
    # raymat asks only for places that exist: those that take longer than this are on a dead node.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # One more actor in every start, for what raymat.cluster.worker.notice_listener does itself.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# Ray's server keeps what became of so many tasks, 2 kB each, for a dashboard (its default: 100,000).
RAY_SETTINGS = {"RAY_task_events_max_num_task_in_gcs": "1000"}
_PACKAGE = re.compile(r"/working_dir_files/_ray_pkg_[^/]+(/|$)")


def in_job_folder(path: str) -> bool:
    """Return whether a path lies in the copy of a working directory that Ray unpacks for a job and removes after it."""
    return _PACKAGE.search(path) is not None


def check_ray_version() -> None:
    """Refuse a version of Ray whose internals are untested.

    Raises:
        ClusterError: names the installed and the tested version.
    """
    installed = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if installed != TESTED_RAY:
        wanted = ".".join(map(str, TESTED_RAY))
        raise ClusterError(
            f"raymat was tried with Ray {wanted}, found {ray.__version__}: "
            f"pip install 'ray[data,train]=={wanted}.*'"
        )


def apply_settings() -> None:
    """Put Ray's settings into the driver's environment; a user's own values win. Call before Ray starts."""
    for name, value in (RAY_TRAIN_SETTINGS | RAY_SETTINGS).items():
        os.environ.setdefault(name, value)


# Nodes, as a driver or a worker sees them.


def raylet_address(node: Mapping[str, Any]) -> str:
    """Return HOST:PORT of a node's raylet; `node` is an item of `ray.nodes()`."""
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def responds(address: str) -> bool:
    """Call gRPC's health check of the raylet or GCS at HOST:PORT, as Ray's head does with its nodes.

    A dead process's port refuses at once; a frozen process is silent. No worker takes part: to start one takes longer
    than a busy machine should be waited for.
    """
    channel = init_grpc_channel(address)
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
    )
    try:
        check(b"", timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        return error.code() in ANSWERS
    finally:
        channel.close()
    return True


def is_head(node: Mapping[str, Any]) -> bool:
    """Return whether a node, an item of `ray.nodes()`, is the cluster's head."""
    return "node:__internal_head__" in node["Resources"]


def declare_dead(head: str, node: str, why: str) -> None:
    """Have the head at HOST:PORT believe now that a node is dead; of a head that does not answer nothing comes.

    It is what the node's own raylet would ask for at its end. One that lives after all ends itself.

    Args:
        node: id in hex.
    """
    request = UnregisterNodeRequest(node_id=bytes.fromhex(node))
    request.node_death_info.reason = UNEXPECTED_TERMINATION
    request.node_death_info.reason_message = why
    channel = init_grpc_channel(head)
    try:
        NodeInfoGcsServiceStub(channel).UnregisterNode(request, timeout=ANSWER_SECONDS)
    except grpc.RpcError as error:
        log.warning("the head does not take node %s for dead: %s", node, error)
    finally:
        channel.close()


def draining_nodes() -> dict[str, float | None]:
    """Return the nodes being drained, by id in hex, each with its deadline in Unix seconds (None if it has none)."""
    found = ray._private.state.state.get_draining_nodes()
    return {node: deadline / 1000 if deadline else None for node, deadline in found.items()}


# The Ray that this process started.


def ended_own_process() -> str | None:
    """Say which of Ray's processes that this one started has ended, and how; None while all that count live."""
    node = ray._private.worker._global_node
    for kind, process in node.dead_processes() if node is not None else ():
        if kind in (PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET):
            code = process.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            return f"{kind} (process {process.pid}) {how}"
    return None


def end_own_ray() -> None:
    """Kill what is left of Ray's processes that this one started, without a word to their head."""
    node = ray._private.worker._global_node
    if node is not None:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


def hush_cluster() -> None:
    """Keep what the cluster has drivers print off the terminal: the last 20 lines of the log of a node that died, and more."""

    def note(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        log.info("%s", "\n".join(data["lines"]))

    ray._private.worker.print_to_stdstream = note


def available_bytes() -> int:
    """Return the memory in bytes that an object store may take here: what is free, of RAM and of /dev/shm."""
    free = get_system_memory() - get_used_memory()
    return int(min(free, get_shared_memory_bytes()) if sys.platform == "linux" else free)


def log_folder() -> str | None:
    """Return the folder of Ray's logs on this machine; None for a client of a cluster elsewhere."""
    node = ray._private.worker._global_node
    return str(node.get_logs_dir_path()) if node is not None else None


@contextmanager
def only_what_a_run_needs() -> Iterator[None]:
    """Start a Ray in this block without the API server, the autoscaler's and the logs' monitor, which are for clusters.

    A run on a Ray of its own asks none of them. They cost two seconds of CPU time and 250 MB, and `ray.init` waits for the first.
    """

    def no_server(node: Node, **options: Any) -> None:
        node._webui_url = ""

    put = {"start_api_server": no_server, **dict.fromkeys(MONITORS, lambda node: None)}
    kept = {name: getattr(Node, name) for name in put}
    try:
        for name, method in put.items():
            setattr(Node, name, method)
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


# Worker processes that a raylet starts ahead.


def worker_pids(address: str) -> frozenset[int]:
    """Return the process ids of all workers of the raylet at HOST:PORT. Raises grpc.RpcError."""
    reply = _call_raylet(address, "GetWorkerPIDs", GetWorkerPIDsRequest())
    return frozenset(reply.pids)


def prestart_worker(address: str, environment: str, keep_seconds: int) -> None:
    """Have the raylet at HOST:PORT start one worker process ahead, for this job.

    Args:
        environment: serialized runtime environment; only tasks and actors with the same one get the process.
        keep_seconds: how long the raylet keeps it unused.

    Raises:
        grpc.RpcError: the raylet does not answer.
    """
    request = PrestartWorkersRequest(
        language=PYTHON,
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        num_workers=1,
        keep_alive_duration_secs=keep_seconds,
    )
    request.runtime_env_info.serialized_runtime_env = environment
    _call_raylet(address, "PrestartWorkers", request)


def _call_raylet(address: str, method: str, request: Any) -> Any:
    channel = init_grpc_channel(address)
    try:
        return getattr(NodeManagerServiceStub(channel), method)(request, timeout=RAYLET_SECONDS)
    finally:
        channel.close()


# Nodes, as a process that is no driver sees them: `ray.init()` would log in to the cluster as a job.


def local_heads() -> list[str]:
    """Return the addresses (HOST:PORT) of the heads that this machine's nodes belong to."""
    return sorted(services.find_gcs_addresses())


def local_nodes() -> set[str]:
    """Return the ids, in hex, of the nodes that run on this machine, of whatever cluster."""
    return set(services.find_node_ids())


def recorded_head() -> str | None:
    """Return HOST:PORT of the head in Ray's own record of the last `ray start` on this machine; None without one.

    The record outlives a cluster that was killed.
    """
    return ray._private.utils.read_ray_address() or None


def resolve_address(address: str) -> str:
    """Return the head's address as HOST:PORT with localhost and the like resolved."""
    return str(services.canonicalize_bootstrap_address(address))


def gcs_client(address: str) -> Any:
    """Return Ray's client of the head at HOST:PORT. It ends the whole process if the head is silent for a minute."""
    return ray._raylet.GcsClient(address=address)


def alive_nodes(client: Any) -> set[str]:
    """Return the ids, in hex, of the nodes that the head believes to be alive."""
    found = client.get_all_node_info(timeout=5, state_filter=GcsNodeInfo.GcsNodeState.ALIVE)
    return {node.hex() for node in found}


def drain_node(client: Any, node: str, reason: str, deadline_ms: int) -> str | None:
    """Drain a node, as the hidden `ray drain-node` does; return why Ray refused, None if it did not.

    Args:
        node: id in hex.
        deadline_ms: Unix milliseconds, 0 for none.
    """
    accepted, why = client.drain_node(node, PREEMPTION, reason, deadline_ms)
    return None if accepted else str(why)
