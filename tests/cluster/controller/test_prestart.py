"""Processes that are started ahead: they wait with their imports done, and are who the next start gets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train.v2._internal.constants import get_env_vars_to_propagate

from raymat.cluster.controller import prestart as module
from raymat.cluster.controller.prestart import (
    RAY_PROCESSES,
    Prestart,
    start_ahead,
    worker_environment,
)
from tests.support.heads import idle_processes, wait_for


def somebody(**environment: Any) -> Any:
    """An actor in a process with this runtime environment."""

    class Somebody:
        def execute(self, function: Callable[[], Any]) -> Any:
            return function()

        def look(self) -> tuple[int, bool]:
            return os.getpid(), "torch" in sys.modules

        def look_at_worker(self, kind: Any, environment: dict[str, Any]) -> tuple[int, bool]:
            """Start one as Ray Train's controller does."""
            worker = kind.options(runtime_env=environment).remote()
            found: tuple[int, bool] = ray.get(worker.look.remote())
            return found

    return ray.remote(num_cpus=0)(Somebody).options(runtime_env=environment).remote()


@dataclass
class Handle:
    """Of a worker, as Ray Train has it."""

    actor: Any
    metadata: Any

    def execute_async(self, function: Callable[[], Any]) -> Any:
        return self.actor.execute.remote(function)


def test_the_next_start_gets_processes_that_were_kept_for_it_with_their_imports_done(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.0)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    here = ray.get_runtime_context().get_node_id()
    worker = somebody(**worker_environment())
    ray.get(worker.look.remote())
    before, spares = idle_processes(), Prestart()
    handle = Handle(worker, SimpleNamespace(node_id=here))

    def kept() -> set[int]:
        spares.keep([handle], {})
        return idle_processes() - before

    wait_for(lambda: len(kept()) >= 1 + RAY_PROCESSES, 300)
    ready = kept()
    others = [somebody() for _ in range(RAY_PROCESSES)]
    assert {pid for pid, _ in ray.get([other.look.remote() for other in others])} <= before | ready
    next_worker = somebody(**worker_environment())
    pid, imported = ray.get(next_worker.look.remote())
    assert {pid} <= ready
    assert imported
    for actor in (worker, next_worker, *others):
        ray.kill(actor)


def test_where_workers_will_join_their_processes_start_at_once(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY_SECONDS", 10_000.0)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    joins = ray.get_runtime_context().get_node_id()
    worker = somebody(**worker_environment())
    ray.get(worker.look.remote())
    before, spares = idle_processes(), Prestart()
    handle = Handle(worker, SimpleNamespace(node_id="elsewhere"))
    spares.keep([handle], {})

    def kept() -> set[int]:
        spares.keep([handle], {joins: 2})
        return idle_processes() - before

    wait_for(lambda: len(kept()) >= 2 + RAY_PROCESSES, 300)
    ready = kept()
    joined = [somebody(**worker_environment()) for _ in range(2)]
    found = ray.get([one.look.remote() for one in joined])
    assert {pid for pid, _ in found} <= ready
    assert [imported for _, imported in found] == [True, True]
    for actor in (worker, *joined):
        ray.kill(actor)


def test_the_first_workers_get_processes_that_the_driver_asked_for(cluster: None) -> None:
    def imported() -> set[int]:
        return {p for p in idle_processes() if "libtorch" in Path(f"/proc/{p}/maps").read_text()}

    before = imported()
    start_ahead(1)
    wait_for(lambda: imported() - before, 300)
    (ahead,) = imported() - before

    class Worker:
        def look(self) -> tuple[int, bool]:
            return os.getpid(), "torch" in sys.modules

    kind = ray.remote(num_cpus=0)(Worker)
    handed_on = get_env_vars_to_propagate()
    controller = somebody(env_vars={"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **handed_on})
    found = ray.get(controller.look_at_worker.remote(kind, worker_environment()))
    assert found == (ahead, True)
    ray.kill(controller)


def test_a_jobs_own_call_at_the_start_of_processes_is_not_taken_from_it(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
    assert worker_environment() == {"env_vars": {variable: "ray.train.torch.TorchConfig"}}
    context = SimpleNamespace(runtime_env={"env_vars": {variable: "mine.begin"}})
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert worker_environment() == {}


def test_a_node_that_does_not_answer_is_done_without(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DELAY_SECONDS", 0.0)
    here = ray.get_runtime_context().get_node_id()
    address = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": 9, "Alive": True}
    monkeypatch.setattr(ray, "nodes", lambda: [address | {"NodeID": here}])
    worker = somebody()
    spares = Prestart()
    for _ in range(3):
        spares.keep([Handle(worker, SimpleNamespace(node_id=here))], {})
    ray.kill(worker)
