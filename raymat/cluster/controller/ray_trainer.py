"""The one adapter to what Ray offers to developers only: the controller's policies.

`TorchTrainer` makes its failure policy itself; handing in another means overriding the method that
starts the controller. A test runs a failing and a killed worker through it, so that a Ray that
changes this is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ray
from ray.train import FailureConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

from raymat.cluster.controller.failure_policy import RaymatFailurePolicy
from raymat.cluster.controller.scaling_policy import RaymatScalingPolicy
from raymat.cluster.worker.notice_listener import mind_sigterm
from raymat.errors import ClusterError

TESTED_RAY = (2, 60)

# Ray Train reads its polls from the environment of the driver and passes them on. Its defaults cost
# seconds per report and restart; a user's own values win.
RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A worker that does not answer the poll is frozen (600: Ray's default). Its polls are answered by
    # a thread of their own: what the training thread hangs in, raymat.train.loop.watchdog finds.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "10",
    # Places are only asked for where there are some: longer than this they are on a dead node.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # An actor more in every start, for what raymat.cluster.worker.notice_listener asks by itself.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def apply_settings() -> None:
    """Set Ray Train's polls in the driver's environment, before Ray starts."""
    for name, value in RAY_TRAIN_SETTINGS.items():
        os.environ.setdefault(name, value)


def check_ray_version() -> None:
    """Refuse a Ray whose developer interfaces were never tried.

    Raises:
        ClusterError: naming the installed and the tried version.
    """
    installed = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if installed != TESTED_RAY:
        wanted = ".".join(map(str, TESTED_RAY))
        raise ClusterError(
            f"raymat was tried with Ray {wanted}, found {ray.__version__}: "
            f"pip install 'ray[data,train]=={wanted}.*'"
        )


class _MindingBackend(_TorchBackend):
    """Torch's process group; workers that commit when they are told to end, and that end at once when they may."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        # What a worker group executes runs in the workers' main threads, the only ones to mind signals in.
        worker_group.execute(mind_sigterm)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Their training function has returned, failed, or stands still: nothing of theirs is waited for any more.

        Ray would ask each to take its process group apart, 30 s long where a machine is frozen, and
        then to say goodbye, for up to 5 s where one is dead.
        """
        for worker in worker_group.get_workers():
            ray.kill(worker.actor)


class PromptTorchConfig(TorchConfig):
    """TorchConfig for workers that mind SIGTERM (`raymat.cluster.worker.notice_listener`)."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _MindingBackend


class _PromptDatasets(DatasetsCallback):
    """Ray's datasets for the workers, whose read tasks end with the workers."""

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Ray would let the read tasks come to an end: for up to 8 s they kept, and went on taking, the cores that the
        next workers wait for. They end with the actors that own them."""
        if self._dataset_shard_provider is not None:
            ray.kill(self._dataset_shard_provider._dataset_manager)


class RaymatTrainer(TorchTrainer):
    """TorchTrainer with raymat's policies.

    Args:
        newest_step: asked by the controller, in its own process, for the newest commit's step.
        board: by which it talks to the workers and the driver.
        spares: whether it keeps processes ready for the next start.
    """

    def __init__(
        self,
        *args: Any,
        newest_step: Callable[[], int],
        board: Any,
        spares: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._newest_step, self._board, self._spares = newest_step, board, spares

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ray would abort the workers; `raymat.cluster.driver.stop_signals` has them commit."""

    def _create_default_callbacks(self) -> list[Any]:
        prompt = _PromptDatasets(self.train_run_context, self.datasets)
        return [
            prompt if type(callback) is DatasetsCallback else callback
            for callback in super()._create_default_callbacks()
        ]

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        config = self.run_config.failure_config or FailureConfig()
        kwargs["failure_policy"] = RaymatFailurePolicy(config, self._newest_step, self._board)
        kwargs["scaling_policy"] = RaymatScalingPolicy(
            self.scaling_config, self._board, self._spares
        )
        return super()._initialize_and_run_controller(**kwargs)
