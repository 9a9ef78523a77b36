"""Processes that wait for the next start of the workers, so that nobody waits for Python then.

A start needs a process for each worker and, one after another, three of Ray Train's and Ray Data's own beside the
controller. Each costs a second or more of CPU before it can be told anything, and a worker's imports cost several. A raylet
starts processes ahead when it is asked to, and keeps them for the first that needs one like that. Ray has no public call
for it; where it is not granted, everything goes on without.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.core.generated.common_pb2 import PYTHON
from ray.core.generated.node_manager_pb2 import GetWorkerPIDsRequest, PrestartWorkersRequest
from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
from ray.exceptions import RayError

log = logging.getLogger(__name__)

RAYS_OWN = 3
"""A start's barrier, its datasets' manager and their coordinator, beside the controller."""
KEEP_SECONDS = 3600
"""So long an unused one is kept."""
SETTLE_SECONDS = 20.0
"""The workers have trained so long before the first is asked for: a short run needs none."""
LOOK_SECONDS = 1.0
"""Between two looks whether the last has come. They come one at a time: training needs the cores."""
START_SECONDS = 30.0
"""One that has not come by then is asked for again. A raylet that starts as many processes as its machine has cores puts a
request aside, and takes any process that comes for the answer to it."""
TRIES = 3
ANSWER_SECONDS = 2.0
IMPORTS = "ray.train.torch.TorchConfig"
"""What a worker's process calls before anything else, for the imports that it brings: torch, Ray Train and Ray Data, most of
what a worker imports. Not raymat, which such a process may find only when it is told the driver's paths."""


def worker_environment() -> dict[str, Any]:
    """The runtime environment of the workers: their processes import ahead, unless the job has them call something else."""
    job = ray.get_runtime_context().runtime_env
    taken = WORKER_PROCESS_SETUP_HOOK_ENV_VAR in job.get("env_vars", {})
    return {} if taken else {"env_vars": {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: IMPORTS}}


class Prestart:
    """Asks for them, from the controller's process, which waits for each of a raylet's answers for 2 s at most."""

    def __init__(self) -> None:
        self.started()

    def started(self) -> None:
        """Workers start, and take those that there are."""
        self._next = math.inf
        self._until = 0.0
        self._environment: Any = None
        """A reference to that of the workers."""
        self._wanted: dict[str, _Wanted] = {}
        """By node (id): what is still to come there."""

    def keep(self, workers: Sequence[Any]) -> None:
        """Have as many on each node as the next start will need. `workers`: Ray Train's handles of those that train.

        To be called again and again: asks for one at a time, so many for each start, and anew when the last are not
        kept any longer.
        """
        now = time.monotonic()
        if math.isinf(self._next):
            self._next = now + SETTLE_SECONDS
        if now < self._next:
            return
        if now >= self._until and not self._count(workers, now):
            return
        if self._wanted:
            self._next = now + LOOK_SECONDS
            self._ask(now)

    def _count(self, workers: Sequence[Any], now: float) -> bool:
        """Find out what is needed; False while a worker is still being asked for its environment."""
        if self._environment is None:
            self._environment = workers[0].execute_async(_environment)
        if not ray.wait([self._environment], timeout=0)[0]:
            return False
        self._until = now + KEEP_SECONDS
        environments: dict[str, list[str]] = defaultdict(list)
        try:
            environment = ray.get(self._environment)
        except RayError as error:  # it has just died
            log.info("no spare processes for workers: %s", error)
        else:
            for worker in workers:
                environments[worker.metadata.node_id].append(environment)
        context = ray.get_runtime_context()
        environments[context.get_node_id()] += [context.get_runtime_env_string()] * RAYS_OWN
        self._wanted = {node: _Wanted(those) for node, those in environments.items()}
        return True

    def _ask(self, now: float) -> None:
        """For one more on each node, where the last has come."""
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node, wanted in list(self._wanted.items()):
            try:
                more = node in nodes and wanted.ask(nodes[node], now)
            except grpc.RpcError as error:
                log.info("no spare processes on node %s: %s", node, error)
                more = False
            if not more:
                del self._wanted[node]


@dataclass
class _Wanted:
    """What is still to come on one node."""

    environments: list[str]
    """Of each process; the first is the one that has been asked for, if one has."""
    before: frozenset[int] | None = None
    """The processes there (pids) when it was asked for; None: it has not been."""
    asked: float = 0.0
    tries: int = 0

    def ask(self, node: dict[str, Any], now: float) -> bool:
        """For the next if the last has come. False: nothing is left to wait for, or the node starts none."""
        with _raylet(node) as raylet:
            reply = raylet.GetWorkerPIDs(GetWorkerPIDsRequest(), timeout=ANSWER_SECONDS)
            there = frozenset(reply.pids)
            if self.before is not None:
                if there - self.before:
                    del self.environments[0]
                    self.tries = 0
                elif now - self.asked < START_SECONDS:
                    return True
            if not self.environments or self.tries == TRIES:
                return False
            self.before, self.asked, self.tries = there, now, self.tries + 1
            request = PrestartWorkersRequest(
                language=PYTHON,
                job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
                num_workers=1,
                keep_alive_duration_secs=KEEP_SECONDS,
            )
            # Only a process with the same environment fits.
            request.runtime_env_info.serialized_runtime_env = self.environments[0]
            raylet.PrestartWorkers(request, timeout=ANSWER_SECONDS)
        return True


def _environment() -> str:
    return str(ray.get_runtime_context().get_runtime_env_string())


@contextlib.contextmanager
def _raylet(node: dict[str, Any]) -> Iterator[Any]:
    channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    try:
        yield NodeManagerServiceStub(channel)
    finally:
        channel.close()
