"""The one adapter to what Ray offers to developers only: the controller's policies.

`TorchTrainer` makes its failure policy itself; handing in another means overriding the method that
starts the controller. A test runs a failing and a killed worker through it, so that a Ray that
changes this is noticed.
"""

from __future__ import annotations

import os
from typing import Any

import ray
from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
)

from raymat.errors import ClusterError, RaymatError, StorageError

TESTED_RAY = (2, 60)

# Ray Train reads its polls from the environment of the driver and passes them on. Its defaults cost
# seconds per report and restart; a user's own values win.
RAY_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
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
    """The exception that a training function raised, out of the wrappers that Ray puts around
    it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = (
            getattr(error, "_base_exc", None)
            if isinstance(error, UserExceptionWithTraceback)
            else getattr(error, "cause", None)
        )
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
    """Whether trying again would end the same way: raymat's own errors, except those of the
    storage."""
    found = raymat_error(error)
    return found is not None and not isinstance(found, StorageError)


class RaymatFailurePolicy(DefaultFailurePolicy):
    """Ray's policy, but an error that would come again ends the run at once."""

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        if is_fatal(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class RaymatTrainer(TorchTrainer):
    """TorchTrainer with raymat's failure policy."""

    def _initialize_and_run_controller(self, **kwargs: Any) -> Any:
        config = self.run_config.failure_config or FailureConfig()
        kwargs["failure_policy"] = RaymatFailurePolicy(config)
        return super()._initialize_and_run_controller(**kwargs)
