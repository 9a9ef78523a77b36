"""Worker processes started ahead, so that neither the first start of the workers nor the next waits for Python.

A start needs a process for each worker and one of Ray Train's own beside the controller. Each costs a second or more of CPU
before it can take orders, and a worker's imports cost several. A raylet starts processes ahead on request, and keeps them for
the first that needs one like that. Where a raylet refuses, everything goes on without.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import ray
from ray.exceptions import RayError

from raymat.cluster.ray_internals import SETUP_HOOK, prestart_worker, raylet_address, worker_pids
from raymat.cluster.ray_train_internals import serialized_environment

log = logging.getLogger(__name__)

RAY_PROCESSES = 1
"""Of each start, beside the controller: its barrier."""
KEEP_SECONDS = 3600
"""How long a raylet keeps an unused process."""
DELAY_SECONDS = 20.0
"""From the first step to the first request: a short run needs no processes."""
POLL_SECONDS = 1.0
"""Between two looks whether the last process has come. They come one at a time: training needs the cores."""
START_SECONDS = 30.0
"""After this time a process is requested again. A raylet that starts as many processes as its machine has cores puts a request
aside, and takes any process that comes for the answer to it."""
TRIES = 3
IMPORTS = "ray.train.torch.TorchConfig"
"""What a worker's process calls before anything else, for the imports that it brings: torch, Ray Train and Ray Data, most of
what a worker imports. Not raymat, which such a process may find only once it has the driver's paths."""


def worker_environment() -> dict[str, Any]:
    """Return the workers' runtime environment, which has their processes import ahead.

    Empty where the job itself has processes call something else.
    """
    job = ray.get_runtime_context().runtime_env
    taken = SETUP_HOOK in job.get("env_vars", {})
    return {} if taken else {"env_vars": {SETUP_HOOK: IMPORTS}}


def reader_environment() -> dict[str, Any]:
    """Return the runtime environment of the read tasks that this worker starts: its own, without those imports.

    They need none of it, and would wait seconds for it.
    """
    mine = ray.get_runtime_context().runtime_env.get("env_vars", {})
    return {"env_vars": {SETUP_HOOK: ""}} if mine.get(SETUP_HOOK) == IMPORTS else {}


def start_ahead(count: int) -> None:
    """Have this driver's own Ray begin with `count` workers' processes, while the driver still looks at its run.

    They import what workers import while Ray Train's controller does the same. Called by the driver, before any worker is.
    """
    added = worker_environment()
    if not added:
        return
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    address, environment = raylet_address(node), serialized_environment(added)
    try:
        for _ in range(count):
            prestart_worker(address, environment, KEEP_SECONDS)
    except grpc.RpcError as error:
        log.info("no processes are started ahead: %s", error)


class Prestart:
    """The processes started ahead during one worker group's life, requested by the controller."""

    def __init__(self) -> None:
        self._next = math.inf
        self._until = 0.0
        self._answer: Any = None
        """A reference to the workers' runtime environment."""
        self._environment: list[str] = []
        """The workers' own, once one has said; empty if that one died."""
        self._missing: dict[str, _Missing] = {}
        """By node (id)."""
        self._joining: set[str] = set()
        """Nodes (ids) without workers that have been asked."""

    def keep(self, workers: Sequence[Any], joining: Mapping[str, int]) -> None:
        """Have as many processes ready on each node as the next start will need; call this again and again.

        Requests one at a time, and anew when raylets no longer keep the last. Waits 2 s at most for a raylet's answer.

        Args:
            workers: Ray Train's handles of the workers that train.
            joining: by node (id) without any, how many the next start will have there. Where some join the start is near:
                nothing is delayed then.
        """
        now = time.monotonic()
        if math.isinf(self._next):
            self._next = now + DELAY_SECONDS
        came = joining.keys() - self._joining
        if now < self._next and not came:
            return
        if (came or now >= self._until) and not self._heard(workers):
            return
        if now >= self._until:
            self._until = now + KEEP_SECONDS
            self._count(workers)
        for node in came:
            more = self._environment * joining[node]
            self._missing.setdefault(node, _Missing([])).environments += more
        self._joining |= came
        if self._missing:
            self._next = now + POLL_SECONDS
            self._request(now)

    def _heard(self, workers: Sequence[Any]) -> bool:
        """Return whether a worker has said what its environment is, or has died."""
        if self._answer is None:
            self._answer = workers[0].execute_async(_runtime_environment)
        if not ray.wait([self._answer], timeout=0)[0]:
            return False
        try:
            self._environment = [ray.get(self._answer)]
        except RayError as error:
            log.info("no worker processes are started ahead: %s", error)
        return True

    def _count(self, workers: Sequence[Any]) -> None:
        """Find out what is needed where workers run, and on this node."""
        environments: dict[str, list[str]] = defaultdict(list)
        for worker in workers:
            environments[worker.metadata.node_id] += self._environment
        context = ray.get_runtime_context()
        environments[context.get_node_id()] += [context.get_runtime_env_string()] * RAY_PROCESSES
        self._missing |= {node: _Missing(those) for node, those in environments.items()}

    def _request(self, now: float) -> None:
        """Request one more on each node where the last has come."""
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node, missing in list(self._missing.items()):
            try:
                more = node in nodes and missing.request(raylet_address(nodes[node]), now)
            except grpc.RpcError as error:
                log.info("no processes are started ahead on node %s: %s", node, error)
                more = False
            if not more:
                del self._missing[node]


@dataclass
class _Missing:
    """The processes that one node has still to start."""

    environments: list[str]
    """Of each process; if one has been requested it is the first."""
    before: frozenset[int] | None = None
    """The processes there (pids) at the last request; None before the first."""
    requested: float = 0.0
    tries: int = 0

    def request(self, address: str, now: float) -> bool:
        """Request the next if the last has come; False when nothing is left to wait for, or the node starts none."""
        there = worker_pids(address)
        if self.before is not None:
            if there - self.before:
                del self.environments[0]
                self.tries = 0
            elif now - self.requested < START_SECONDS:
                return True
        if not self.environments or self.tries == TRIES:
            return False
        self.before, self.requested, self.tries = there, now, self.tries + 1
        prestart_worker(address, self.environments[0], KEEP_SECONDS)
        return True


def _runtime_environment() -> str:
    return str(ray.get_runtime_context().get_runtime_env_string())
