"""Private and developer interfaces of Ray Train: its controller's policies, callbacks, errors and process groups.

Everything here may change with any release of Ray: `tests/cluster/test_ray_internals.py` tries each on its own.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle
from ray.data._internal.cluster_autoscaler.base_autoscaling_coordinator import (
    ResourceRequestPriority,
)
from ray.train import ScalingConfig
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.controller.state import ReschedulingState
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    AUTOSCALING_REQUESTS_EXPIRE_TIME_S,
    TrainAutoscalingCoordinatorClient,
    build_train_resource_request,
)
from ray.train.v2._internal.util import TrainingFramework
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

__all__ = [
    "DefaultFailurePolicy",
    "ElasticPolicy",
    "FailureDecision",
    "NoopDecision",
    "PolicyTrainer",
    "ResizeDecision",
    "ScalingDecision",
    "WorkerGroupStartupTimeoutError",
    "WorkerHealthCheckTimeoutError",
    "WorkerTorchConfig",
    "failed_to_start",
    "serialized_environment",
    "unwrap",
    "worker_resources",
]

MAX_WRAPPERS = 8
WRAPPED = ("_base_exc", "health_check_failure", "controller_failure", "cause")
"""Attributes in which Ray's errors keep what they wrap: what a training function raised, why a health check failed, what a
task raised."""


def unwrap(error: BaseException) -> BaseException:
    """Return what happened to a worker, without the errors that Ray wraps around it."""
    for _ in range(MAX_WRAPPERS):
        inner = next((getattr(error, name, None) for name in WRAPPED if hasattr(error, name)), None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def failed_to_start(state: Any) -> bool:
    """Tell whether the controller is in the state that follows a worker group which found no places."""
    return isinstance(state, ReschedulingState)


def worker_resources(config: ScalingConfig) -> dict[str, float]:
    """Return what one worker asks of Ray, by resource; never empty."""
    return dict(config._resources_per_worker_not_none)


def serialized_environment(added: Mapping[str, Any]) -> str:
    """Return the runtime environment of the workers of a trainer of this driver's, as raylets compare it.

    Ray merges the variables of the job, of Ray Train's controller and of the workers, and writes the sum as its C++ does.

    Args:
        added: the trainer's `worker_runtime_env`, of variables alone.
    """
    environment = json.loads(ray.get_runtime_context().get_runtime_env_string())
    variables = {
        RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        **get_env_vars_to_propagate(),
        **added.get("env_vars", {}),
    }
    environment["env_vars"] = environment.get("env_vars", {}) | variables
    return json.dumps(environment, separators=(",", ":"), sort_keys=True)


class _Client(TrainAutoscalingCoordinatorClient):
    """Tells the actor that asks the autoscaler for machines what workers need, and does not wait for its answer.

    Ray's waits for the actor's process to come up before it starts any workers.
    """

    def __init__(self, requester_id: str) -> None:
        super().__init__(requester_id)
        self._latest_autoscaling_request_time = float("-inf")

    def send_resource_request(self, scaling_config: ScalingConfig, num_workers: int) -> None:
        resources, selectors = build_train_resource_request(scaling_config, num_workers)
        self._autoscaling_coordinator.request_resources.remote(
            requester_id=self._requester_id,
            resources=resources,
            label_selectors=selectors,
            expire_after_s=AUTOSCALING_REQUESTS_EXPIRE_TIME_S,
            priority=ResourceRequestPriority.HIGH,
        )
        self._latest_autoscaling_request_time = time.monotonic()


class ElasticPolicy(ElasticScalingPolicy):
    """Ray's elastic scaling policy, which asks for machines where they may join."""

    def __init__(self, scaling_config: ScalingConfig, grows: bool) -> None:
        """`grows`: whether machines may join."""
        super().__init__(scaling_config)
        self._grows = grows
        self._requester_id: str | None = None
        self._coordinator_client: Any = None

    def after_controller_start(self, train_run_context: Any) -> None:
        self._requester_id = f"train-{train_run_context.run_id}"
        if self._grows:
            self._coordinator_client = _Client(self._requester_id)
            self._send_resource_request()

    def request_resources(self) -> None:
        """Tell the cluster's autoscaler, now and then, what the largest worker group would need."""
        if self._grows:
            self._maybe_send_resource_request()


class _WorkerBackend(Backend):
    """Torch's process group, set up as `WorkerTorchConfig` says and taken down at once.

    As Ray's own backend for torch, but that the controller, where it runs, need not import torch.
    """

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: WorkerTorchConfig) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        # A worker group executes it in the workers' main threads, the only ones that can install signal handlers.
        joining = [
            worker_group.execute_single_async(
                rank, _join, backend_config, address, port, rank, len(worker_group)
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Kill the workers: their training function has returned, failed or hangs, so nothing of theirs is waited for.

        Ray would ask each to destroy its process group, for 30 s where a machine is frozen, and then to exit, for up to
        5 s where one is dead.
        """
        for worker in worker_group.get_workers():
            ray.kill(worker.actor)


def _join(config: WorkerTorchConfig, address: str, port: int, rank: int, world: int) -> None:
    """Join the process group, as a worker."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    config.setup()
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(config.backend, rank, world, "env://", config.timeout_s)


class _Device:
    """What the training function runs in: with this worker's GPU as torch's default, where it has one."""

    def __enter__(self) -> None:
        from ray.train.torch.config import TorchConfigContextManager

        TorchConfigContextManager().__enter__()

    def __exit__(self, *error: object) -> None: ...


@dataclass
class WorkerTorchConfig(BackendConfig):
    """Ray's TorchConfig for workers that call `setup` in their main thread when they start, and are killed at their end."""

    backend: str = "gloo"
    timeout_s: int = 1800
    """Of collectives."""
    setup: Callable[[], None] = lambda: None

    @property
    def backend_cls(self) -> type[Backend]:
        return _WorkerBackend

    @property
    def train_func_context(self) -> type[_Device]:
        return _Device

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH


class PolicyTrainer(DataParallelTrainer):
    """Ray's TorchTrainer, whose controller decides by the given policies.

    TorchTrainer makes its policies itself; handing in others means overriding the method that starts the controller.
    """

    def __init__(
        self,
        *args: Any,
        failure_policy: Any,
        scaling_policy: Any,
        outlived: bool = True,
        **kwargs: Any,
    ) -> None:
        """`outlived`: whether this Ray lives on when the run has ended, so that the workers' places must be given back."""
        super().__init__(*args, **kwargs)
        self._outlived = outlived
        self._policies = {"failure_policy": failure_policy, "scaling_policy": scaling_policy}

    def _register_sigint_handler(self, controller: Any) -> None:
        """Install none: Ray's would abort the workers, `raymat.cluster.driver.stop_signals` has them commit."""

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out those that start a process in vain: for datasets, which the workers open themselves, and for the places
        of workers whose controller died, if their Ray ends then."""
        vain = (
            DatasetsCallback if self._outlived else DatasetsCallback | PlacementGroupCleanerCallback
        )
        found = super()._create_default_callbacks()
        return [callback for callback in found if not isinstance(callback, vain)]

    def _initialize_and_run_controller(self, *, train_fn_ref: Any, **kwargs: Any) -> Any:
        function = HandedOver(train_fn_ref.get())
        del train_fn_ref._ref  # which the caller's frame would hold to the end
        return super()._initialize_and_run_controller(
            train_fn_ref=function, **kwargs | self._policies
        )


class HandedOver:
    """A function that the process which receives it owns: sent by value, there put into Ray's store, and from there by reference.

    Ray Train has the driver own its training function. Where the driver's raylet ends, because one of its agents was
    killed, the driver's Ray would then tell the store that the function is lost, find no store, and end the process
    with no word. A driver that owns no object outlives its raylet, and can say what happened.

    It travels pickled: the controller on the way imports nothing of what it does.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self._held: Any = cloudpickle.dumps(function)

    def get(self) -> Callable[[], None]:
        """Return the function."""
        held = ray.get(self._held) if isinstance(self._held, ray.ObjectRef) else self._held
        found: Callable[[], None] = pickle.loads(held)
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        held = state["_held"]
        self._held = held if isinstance(held, ray.ObjectRef) else ray.put(held)
