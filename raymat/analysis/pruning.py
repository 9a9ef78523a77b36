"""Plans which checkpoints of a run to delete, by the run's own validations and schedule."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raymat.checkpoint import retention
from raymat.checkpoint.catalog import Status, mark_newer, read_extra
from raymat.checkpoint.integrity import newest_verified
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import Plan, RetentionPolicy
from raymat.config.run import from_dict
from raymat.console import ProgressBar
from raymat.errors import CheckpointError, ConfigError
from raymat.storage.store import Store
from raymat.train.observability.events import highest_attempt
from raymat.train.run.open_run import data_of_run
from raymat.train.run.run_file import read_run
from raymat.train.run.run_url import list_checkpoints
from raymat.train.run.schedule import Schedule
from raymat.train.validation.criteria import metric_of, validated


@dataclass(frozen=True)
class Pruning:
    """The checkpoints of a run and the plan for them."""

    store: Store
    statuses: tuple[Status, ...]
    """Oldest first."""
    plan: Plan
    damaged: Mapping[CheckpointId, str]
    """Checkpoints that failed verification, and why."""

    def reason(self, status: Status) -> str:
        """Say why a checkpoint goes or stays."""
        torn = status.summary if status.state == "torn" else ""
        state = self.damaged.get(status.id) or torn
        reason = self.plan.keep.get(status.id)
        if reason is None:
            return state or "nothing keeps it"
        return f"{reason} ({state})" if state else reason

    def delete(self) -> int:
        """Delete what the plan says; returns the bytes freed, with those of files that dead writers left unfinished."""
        return retention.prune(self.store, self.plan.delete)


def plan_pruning(
    store: Store,
    policy: RetentionPolicy,
    *,
    epochs: bool = False,
    progress: ProgressBar | None = None,
) -> Pruning:
    """Decide which checkpoints go; deletes nothing. `epochs`: keep those at the ends of epochs.

    Raises:
        CheckpointError: there are committed checkpoints, but none verifies. ConfigError: the ends of epochs are not
        known. StorageError: there is no such run, or it cannot be read.
    """
    statuses = mark_newer(store, list_checkpoints(store))
    stored = read_run(store) or {}
    good, damaged = newest_verified(store, statuses, run=stored.get("run_id"), progress=progress)
    if good is None and damaged:
        raise CheckpointError(
            f"no checkpoint of {store.url} verifies, nothing is deleted: see raymat verify"
        )
    extra = read_extra(store, good) if good else {}
    metric, mode = metric_of(extra)
    if policy.thresholds and metric != "loss":
        raise ConfigError(
            f"the run's best checkpoint is the one by its {metric}: leave --loss-thresholds out"
        )
    values = validated(extra, metric)
    found = retention.plan(
        statuses,
        replace(policy, best=None if policy.best is None else mode),
        # A run that is still training writes under this attempt; torn ones of earlier attempts are dead.
        attempt=highest_attempt(store) or None,
        metrics={s.id: values[s.id.step] for s in statuses if s.id.step in values},
        epoch_ends=_epoch_ends(store, stored, [s.id.step for s in statuses]) if epochs else (),
        # A validation beside training may still find that this one is the best.
        protected=[s.id for s in statuses if s.id.step == extra.get("pending_validation")],
        damaged=damaged,
    )
    return Pruning(store, tuple(reversed(statuses)), found, damaged)


def _epoch_ends(store: Store, stored: Mapping[str, Any], steps: Collection[int]) -> set[int]:
    """Select those of `steps` at which the run's schedule ends a virtual epoch; `stored` is its run.json."""
    if not stored:
        raise ConfigError(f"--keep-epochs needs {store.url}/run.json, which is missing")
    config = from_dict(stored["config"])
    _, order = data_of_run(config, store, dict(stored))
    schedule = Schedule.of(config, order)
    return {step for step in steps if step > 0 and schedule.ends_epoch(step)}
