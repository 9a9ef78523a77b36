"""Plans which checkpoints of a run to delete, by the run's own validations and schedule."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
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
from raymat.train.observability.deletions import CommitRecord, announce_deletion
from raymat.train.observability.events import EventLog, highest_attempt, read_events
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
    attempt: int
    """What earlier attempts than this left unfinished goes; 0: nothing."""
    abandoned: frozenset[CheckpointId] = field(default=frozenset())
    """What they left, and no newer checkpoint supersedes."""

    def reason(self, status: Status) -> str:
        """Say why a checkpoint goes or stays."""
        torn = status.summary if status.state == "torn" else ""
        state = self.damaged.get(status.id) or torn
        reason = self.plan.keep.get(status.id)
        if status.id in self.abandoned:
            return f"left unfinished ({state})"
        if reason is None:
            return state or "nothing keeps it"
        return f"{reason} ({state})" if state else reason

    def delete(self) -> int:
        """Delete what the plan says; returns the bytes freed, with those of files that dead writers left unfinished."""
        log = EventLog(self.store, None, "prune")
        log.write_in_background()
        emit = functools.partial(log.emit, required=True)
        unfinished = [c for c in self.plan.delete if c in self.abandoned]
        others = [c for c in self.plan.delete if c not in self.abandoned]
        announce_deletion(emit, others, torn=False)
        announce_deletion(emit, unfinished, torn=True)
        freed = retention.prune(self.store, self.plan.delete, dead_before=self.attempt)
        if unfinished:
            retention.remove_abandoned(self.store, unfinished, self.attempt)
        log.close()  # an event that a full disk did not take finds room now
        return freed


def plan_pruning(
    store: Store,
    policy: RetentionPolicy,
    *,
    epochs: bool = False,
    alone: bool = False,
    progress: ProgressBar | None = None,
) -> Pruning:
    """Decide which checkpoints go; deletes nothing.

    Args:
        epochs: keep those at the ends of epochs.
        alone: nobody trains the run, and whoever will takes the number of a new attempt: what is unfinished is abandoned.

    Raises:
        CheckpointError: there are committed checkpoints, but none verifies. ConfigError: the ends of epochs are not
        known. StorageError: there is no such run, or it cannot be read.
    """
    # Before the listing: a torn one of a later attempt is not known to be abandoned.
    attempt = highest_attempt(store)
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
        # A run that is still training writes under the highest attempt; those before are dead.
        attempt=attempt + alone or None,
        metrics={s.id: values[s.id.step] for s in statuses if s.id.step in values},
        epoch_ends=_epoch_ends(store, stored, [s.id.step for s in statuses]) if epochs else (),
        # A validation beside training may still find that this one is the best.
        protected=[s.id for s in statuses if s.id.step == extra.get("pending_validation")],
        damaged=damaged,
    )
    pruning = Pruning(store, tuple(reversed(statuses)), found, damaged, (attempt + 1) * alone)
    return _with_abandoned(pruning) if alone else pruning


def _with_abandoned(pruning: Pruning) -> Pruning:
    """Add what dead attempts left unfinished and `retention.plan` spares."""
    store, spared = pruning.store, pruning.plan.keep.keys() - pruning.damaged.keys()
    statuses = [status for status in pruning.statuses if status.id in spared]
    found = retention.find_abandoned(
        store, statuses, pruning.attempt, lambda: CommitRecord.of(read_events(store)).committed
    )
    keep = {
        checkpoint: why for checkpoint, why in pruning.plan.keep.items() if checkpoint not in found
    }
    plan = Plan(tuple(sorted({*pruning.plan.delete, *found})), keep)
    return replace(pruning, plan=plan, abandoned=frozenset(found))


def _epoch_ends(store: Store, stored: Mapping[str, Any], steps: Collection[int]) -> set[int]:
    """Select those of `steps` at which the run's schedule ends a virtual epoch; `stored` is its run.json."""
    if not stored:
        raise ConfigError(f"--keep-epochs needs {store.url}/run.json, which is missing")
    config = from_dict(stored["config"])
    _, order = data_of_run(config, store, dict(stored))
    schedule = Schedule.of(config, order)
    return {step for step in steps if step > 0 and schedule.ends_epoch(step)}
