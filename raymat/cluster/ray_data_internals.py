"""Private interfaces of Ray Data: who decides how many of a dataset's tasks are begun, and whom a dataset tells of itself.

Ray Data divides a cluster's cores and object store evenly among its datasets, a whole number of a node's cores each: none where
more ranks than cores have a dataset of their own. So each dataset here has a pacer instead, which says when the next task is due.

Everything here may change with any release of Ray: `tests/cluster/test_ray_internals.py` tries it.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

import ray
from ray.data import DataContext
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    DefaultAutoscalingCoordinator,
)
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import (
    BackpressurePolicy,
)
from ray.data._internal.stats import _StatsManager

__all__ = ["Pacer", "pace", "tell_nobody"]

PACER = "raymat.pacer"
"""The key of a pacer's name in a dataset's context, which Ray Data copies and sends to the tasks."""

PAUSE_SECONDS = 0.1
"""Between two questions while no task may begin and none runs."""


class Pacer(Protocol):
    """Who decides when a dataset's next task is begun. Asked all the time, in a thread of Ray Data's; must return at once."""

    def admits(self, submitted: int, running: int) -> bool:
        """Return whether one more task may begin, after `submitted`, of which `running` have not ended.

        One task is begun whatever it says while none is running and the dataset's reader waits.
        """


_pacers: dict[str, Pacer] = {}
"""Of the datasets that this process reads, by name."""


class _Paced(BackpressurePolicy):
    """Ray Data's rule for one execution: what the dataset's pacer says, and what is finished is taken at once.

    Outputs must never be held back: a task that waits to hand over its rows keeps a core that another rank's next batch may need,
    and ranks wait for each other.
    """

    def __init__(self, data_context: DataContext, *args: Any) -> None:
        super().__init__(data_context, *args)
        self._pacer = _pacers.get(data_context.get_config(PACER))

    def can_add_input(self, op: Any) -> bool:
        if not op.input_dependencies:  # it holds the list of the tasks, and has none of its own
            return True
        running = op.metrics.num_tasks_running
        if self._pacer is not None and self._pacer.admits(op.metrics.num_tasks_submitted, running):
            return True
        if not running:  # Ray Data's thread waits for tasks alone: without any it would never rest
            time.sleep(PAUSE_SECONDS)
        return False


@contextlib.contextmanager
def pace(context: DataContext, pacer: Pacer) -> Iterator[None]:
    """Have `pacer` decide for the dataset of this context that is read in the block, and nobody else."""
    name = uuid.uuid4().hex
    context.op_resource_reservation_enabled = False
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [_Paced])
    context.set_config(PACER, name)
    # A process that runs tasks would get another log handler at each change between datasets, and never lose one.
    context.set_dataset_logger_id = _keep_no_log
    _pacers[name] = pacer
    try:
        yield
    finally:
        del _pacers[name]


def _keep_no_log(dataset_id: str) -> None:
    """Take the place of `DataContext.set_dataset_logger_id`: a dataset's tasks log nowhere of their own."""


def tell_nobody(grows: bool) -> None:
    """Have the datasets of this process start no actors that count them: each costs a process with all imports of Ray Data.

    The first dataset would wait for such a process to come up. A rank reads a dataset for each window of steps: on a
    dashboard they say nothing.

    Args:
        grows: whether machines may join, so that Ray's autoscaler has to know what datasets need.
    """
    _StatsManager.gen_dataset_id_from_stats_actor = staticmethod(lambda: uuid.uuid4().hex)
    for told in (
        "register_dataset_to_stats_actor",
        "update_execution_metrics",
        "update_iteration_metrics",
    ):
        assert hasattr(_StatsManager, told)
        setattr(_StatsManager, told, staticmethod(lambda *args, **kwargs: None))
    chosen = DefaultAutoscalingCoordinator if grows else _OneMachine
    rate_based_cluster_autoscaler.DefaultAutoscalingCoordinator = chosen


class _OneMachine(DefaultAutoscalingCoordinator):
    """Takes the place of the client of the actor that asks the autoscaler for machines: a dataset may have all there is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kinds = ("CPU", "GPU", "memory", "object_store_memory")
        self._all = {k: v for k, v in ray.cluster_resources().items() if k in kinds}

    def request_resources(self, *args: Any, **kwargs: Any) -> None: ...

    def cancel_request(self) -> None: ...

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        return {"all": self._all}
