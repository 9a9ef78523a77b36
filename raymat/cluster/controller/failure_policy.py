"""A failure policy that ends a run where trying again would end the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ray.exceptions import RayError
from ray.train import FailureConfig

from raymat.cluster.blackboard import Blackboard
from raymat.cluster.ray_train_internals import (
    DefaultFailurePolicy,
    FailureDecision,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckTimeoutError,
    unwrap,
)
from raymat.errors import CheckpointError, RaymatError, RunGoneError, StorageError
from raymat.train.run.notice import LeavingError

MAX_FRUITLESS = 3
"""The same failure this often, with no progress between, ends the run."""
MAX_DEATHS = 10
"""Deaths of workers this often, with no progress between, end the run."""


def raymat_error(error: BaseException) -> RaymatError | None:
    """Return the first raymat error among a worker group's failures (lowest rank first), or None."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    for rank in sorted(failures):
        found = unwrap(failures[rank])
        if isinstance(found, RaymatError):
            return found
    return None


def is_fatal(error: BaseException) -> bool:
    """Return whether trying again would end the same way: so it is with raymat's errors, but for storage that fails."""
    found = raymat_error(error)
    may_pass = (isinstance(found, LeavingError) and not found.final) or (
        isinstance(found, StorageError) and not isinstance(found, CheckpointError | RunGoneError)
    )
    return found is not None and not may_pass


def somebody_died(error: BaseException) -> bool:
    """Return whether a worker's process or node was lost or froze; the other ranks then fail for that alone."""
    return any(is_death(found) for found in getattr(error, "worker_failures", {}).values())


def is_death(error: BaseException) -> bool:
    """Return whether a worker's error says that its process or node was lost or froze."""
    return isinstance(unwrap(error), (RayError, WorkerHealthCheckTimeoutError))


def cause_first(failures: Mapping[int, BaseException]) -> dict[str, str]:
    """Return what happened to each worker, by rank; those that died come first: mostly the others failed for that alone."""
    ranks = sorted(failures, key=lambda rank: (not is_death(failures[rank]), rank))
    return {str(rank): signature(failures[rank]) for rank in ranks}


def signature(error: BaseException) -> str:
    """Return what a failure looks like: type and first line of each worker's, lowest rank first."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    found = [unwrap(failures[rank]) for rank in sorted(failures)]
    return "; ".join(f"{type(e).__name__}: {str(e).strip().partition(chr(10))[0]}" for e in found)


class RaymatFailurePolicy(DefaultFailurePolicy):
    """Ray's policy, which also ends the run at an error that raymat raised on purpose, and at failures without progress.

    The same failure three times without a commit between is no accident. Killed workers are another matter: neither their
    deaths nor the broken connections of the others, which name another port each time, tell of a fault. But after ten
    without a commit between the machines are not worth their money.
    """

    def __init__(
        self, failure_config: FailureConfig, newest_step: Callable[[], int], board: Blackboard
    ) -> None:
        super().__init__(failure_config)
        self._newest_step, self._board = newest_step, board
        self._step = -1
        self._seen: Counter[str] = Counter()
        """Number of each kind of failure since the newest commit."""

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Retry or raise after a failure; called by the controller."""
        found = raymat_error(training_failed_error)
        if isinstance(found, LeavingError) and not found.final:
            return (
                FailureDecision.RETRY
            )  # without a limit: machines that come and go are no failure
        if is_fatal(training_failed_error) or self._is_fruitless(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)

    def _is_fruitless(self, error: BaseException) -> bool:
        """Return whether the same has happened too often since the newest commit; if so, say why on the blackboard."""
        # Somebody else has the places.
        waits = isinstance(unwrap(error), WorkerGroupStartupTimeoutError)
        if waits or isinstance(raymat_error(error), StorageError):
            return False
        try:
            step = self._newest_step()
        except StorageError:
            return False  # the workers find out whether it comes back
        if step != self._step:
            self._step = step
            self._seen.clear()
        kind, allowed = self._kind(error)
        self._seen[kind] += 1
        if self._seen[kind] < allowed:
            return False
        since = f"since step {step} was committed" if step else "and nothing was committed yet"
        verdict = f"{kind} ({self._seen[kind]} times {since}); the run's events say more"
        self._board.set_verdict(verdict)
        return True

    def _kind(self, error: BaseException) -> tuple[str, int]:
        """Return what a failure is counted as, and its limit."""
        hangs = self._board.hangs()
        if hangs:
            return hangs[0], MAX_FRUITLESS
        if somebody_died(error):
            return "workers died or were killed", MAX_DEATHS
        return signature(error), MAX_FRUITLESS
