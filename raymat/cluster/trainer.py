"""The one adapter to what Ray offers to developers only: the controller's policies.

`TorchTrainer` makes its failure policy itself; handing in another means overriding the method that
starts the controller. A test runs a failing and a killed worker through it, so that a Ray that
changes this is noticed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
)

from raymat.cluster import board as boards
from raymat.cluster.notices import mind_sigterm
from raymat.cluster.scaling import RaymatScalingPolicy
from raymat.errors import CheckpointError, ClusterError, RaymatError, StorageError
from raymat.train.notice import LeavingError

TESTED_RAY = (2, 60)
MAX_FRUITLESS = 3  # the same failure this often without a commit between: it is no accident
MAX_DEATHS = 10  # workers died this often without a commit between: it comes to nothing
MAX_WRAPPERS = 8
# Where Ray's wrappers keep what they wrap: what a training function raised, why a health check
# failed, what a task raised.
WRAPPED = ("_base_exc", "health_check_failure", "controller_failure", "cause")

# Ray Train reads its polls from the environment of the driver and passes them on. Its defaults cost
# seconds per report and restart; a user's own values win.
RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # A worker that does not answer the poll is frozen (600: Ray's default). Its polls are answered by
    # a thread of their own: what the training thread hangs in, raymat.train.pulse finds.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "10",
    # Places are only asked for where there are some: longer than this they are on a dead node.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # An actor more in every start, for what raymat.cluster.notices asks by itself.
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


def cause(error: BaseException) -> BaseException:
    """What happened to a worker, out of the wrappers that Ray puts around it."""
    for _ in range(MAX_WRAPPERS):
        inner = next((getattr(error, name, None) for name in WRAPPED if hasattr(error, name)), None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def raymat_error(error: BaseException) -> RaymatError | None:
    """The first raymat error among a worker group's failures (lowest rank first), or None."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    for rank in sorted(failures):
        found = cause(failures[rank])
        if isinstance(found, RaymatError):
            return found
    return None


def is_fatal(error: BaseException) -> bool:
    """Whether trying again would end the same way: raymat's own errors, but for storage that
    fails."""
    found = raymat_error(error)
    may_pass = (isinstance(found, LeavingError) and not found.final) or (
        isinstance(found, StorageError) and not isinstance(found, CheckpointError)
    )
    return found is not None and not may_pass


def somebody_died(error: BaseException) -> bool:
    """Whether a worker's process or node was lost or froze; the other ranks then fail for that alone."""
    failures = getattr(error, "worker_failures", {})
    lost = (RayError, WorkerHealthCheckTimeoutError)
    return any(isinstance(cause(found), lost) for found in failures.values())


def signature(error: BaseException) -> str:
    """What a failure looks like: type and first line of each worker's, lowest rank first."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    found = [cause(failures[rank]) for rank in sorted(failures)]
    return "; ".join(f"{type(e).__name__}: {str(e).strip().partition(chr(10))[0]}" for e in found)


class RaymatFailurePolicy(DefaultFailurePolicy):
    """Ray's policy, but what would come again ends the run: at once for an error that raymat
    raised on purpose, and when the very same failure came three times without a commit between.

    Killed workers are another matter: neither their deaths nor the broken connections of the others,
    which name another port each time, tell of a fault. But where even they come to nothing the
    machines are not worth their money.
    """

    def __init__(
        self, failure_config: FailureConfig, newest_step: Callable[[], int], board: Any
    ) -> None:
        super().__init__(failure_config)
        self._newest_step, self._board = newest_step, board
        self._step = -1
        self._seen: Counter[str] = Counter()
        """How often each failure came since the newest commit."""

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        found = raymat_error(training_failed_error)
        if isinstance(found, LeavingError) and not found.final:
            return FailureDecision.RETRY  # as often as machines come and go: it is no failure
        if is_fatal(training_failed_error) or self._is_fruitless(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)

    def _is_fruitless(self, error: BaseException) -> bool:
        """Whether the same has happened too often since the newest commit; the board is told why."""
        waits = isinstance(
            cause(error), WorkerGroupStartupTimeoutError
        )  # somebody else has the places
        if waits or isinstance(raymat_error(error), StorageError):
            return False
        step = self._newest_step()
        if step != self._step:
            self._step = step
            self._seen.clear()
        kind, allowed = self._kind(error)
        self._seen[kind] += 1
        if self._seen[kind] < allowed:
            return False
        since = f"since step {step} was committed" if step else "and nothing was committed yet"
        verdict = f"{kind} ({self._seen[kind]} times {since}); the run's events say more"
        boards.ask(self._board.set_verdict.remote(verdict), None)
        return True

    def _kind(self, error: BaseException) -> tuple[str, int]:
        """What a failure is counted as, and how often it may come."""
        stuck = boards.ask(self._board.stuck.remote(), [])
        if stuck:
            return stuck[0], MAX_FRUITLESS
        if somebody_died(error):
            return "workers died or were killed", MAX_DEATHS
        return signature(error), MAX_FRUITLESS


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


class MindingTorchConfig(TorchConfig):
    """TorchConfig for workers that mind SIGTERM (`raymat.cluster.notices`)."""

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
        """Ray would abort the workers; `raymat.cluster.stop` has them commit."""

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
