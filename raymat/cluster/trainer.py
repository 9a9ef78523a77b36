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
from ray.exceptions import RayError
from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
)

from raymat.cluster.scaling import RaymatScalingPolicy
from raymat.errors import CheckpointError, ClusterError, RaymatError, StorageError
from raymat.train.notice import LeavingError, Notice

TESTED_RAY = (2, 60)
MAX_FRUITLESS = 3  # the same failure this often without a commit between: it is no accident
MAX_WRAPPERS = 8
# Where Ray's wrappers keep what they wrap: what a training function raised, why a health check
# failed, what a task raised.
WRAPPED = ("_base_exc", "health_check_failure", "cause")

# Ray Train reads its polls from the environment of the driver and passes them on. Its defaults cost
# seconds per report and restart; a user's own values win.
RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
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
    may_pass = isinstance(found, LeavingError) or (
        isinstance(found, StorageError) and not isinstance(found, CheckpointError)
    )
    return found is not None and not may_pass


def somebody_died(error: BaseException) -> bool:
    """Whether a worker's process or node was lost; the other ranks then fail for that alone."""
    failures = getattr(error, "worker_failures", {})
    return any(isinstance(cause(found), RayError) for found in failures.values())


def signature(error: BaseException) -> str:
    """What a failure looks like: type and first line of each worker's, lowest rank first."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    found = [cause(failures[rank]) for rank in sorted(failures)]
    return "; ".join(f"{type(e).__name__}: {str(e).strip().partition(chr(10))[0]}" for e in found)


class RaymatFailurePolicy(DefaultFailurePolicy):
    """Ray's policy, but what would come again ends the run: at once for an error that raymat
    raised on purpose, and when the very same failure came three times without a commit between.

    A killed worker is no such failure, however often: neither its death nor the broken connections
    of the others, which name another port each time.
    """

    def __init__(self, failure_config: FailureConfig, newest_step: Callable[[], int]) -> None:
        super().__init__(failure_config)
        self._newest_step = newest_step
        self._last: tuple[int, str] | None = None
        self._fruitless = 0

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if isinstance(raymat_error(training_failed_error), LeavingError):
            return FailureDecision.RETRY  # as often as machines come and go: it is no failure
        if is_fatal(training_failed_error) or self._is_stuck(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)

    def _is_stuck(self, error: BaseException) -> bool:
        if somebody_died(error) or isinstance(raymat_error(error), StorageError):
            return False
        seen = (self._newest_step(), signature(error))
        self._fruitless = self._fruitless + 1 if seen == self._last else 1
        self._last = seen
        return self._fruitless >= MAX_FRUITLESS


class RaymatTrainer(TorchTrainer):
    """TorchTrainer with raymat's policies.

    Args:
        newest_step: asked by the controller, in its own process, for the newest commit's step.
        wish: called there to tell the workers that they should leave, or no longer (None).
    """

    def __init__(
        self,
        *args: Any,
        newest_step: Callable[[], int],
        wish: Callable[[Notice | None], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._newest_step = newest_step
        self._wish = wish

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        config = self.run_config.failure_config or FailureConfig()
        kwargs["failure_policy"] = RaymatFailurePolicy(config, self._newest_step)
        kwargs["scaling_policy"] = RaymatScalingPolicy(self.scaling_config, self._wish)
        return super()._initialize_and_run_controller(**kwargs)
