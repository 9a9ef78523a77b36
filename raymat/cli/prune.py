"""`raymat prune`: delete the checkpoints of a run that nobody wants to keep.

It may run beside training: what it deletes is never the newest that verifies, and training never
goes back behind that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro

from raymat.checkpoint import retention
from raymat.checkpoint.catalog import Status, read_extra
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import Plan, RetentionPolicy
from raymat.cli.runs import list_checkpoints, open_run, why
from raymat.cli.verify import newest_good
from raymat.config.run import from_dict
from raymat.console import ProgressBar, Url, columns, count, parse_options, size
from raymat.errors import CheckpointError, ConfigError
from raymat.storage.store import Store
from raymat.train.loop.schedule import Schedule
from raymat.train.observability.events import highest_attempt
from raymat.train.run.prepare import prepare
from raymat.train.run.run_file import read_run
from raymat.train.validation.criteria import metric_of, validated


@dataclass(frozen=True, kw_only=True)
class Options:
    """Delete the checkpoints of a run that nothing keeps: a dry run, unless --yes is given.

    Reads the newest checkpoint whole first: only what verifies counts, and the newest that does
    always stays. Losses are of the validations that it remembers. Torn checkpoints go if the newest
    attempt did not write them and a newer good one exists. Exit code: 0, or 2 if it could not look
    or delete.
    """

    url: Url
    """The run: STORAGE/NAME, any fsspec URL."""
    keep: Annotated[int, tyro.conf.arg(metavar="N")]
    """Keep the newest N."""
    keep_best: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Keep the N with the lowest validation loss; 0 for none."""
    every: Annotated[int | None, tyro.conf.arg(metavar="STEPS", help_behavior_hint="")] = None
    """Keep those whose step is a multiple of this."""
    keep_epochs: bool = False
    """Keep those at the end of a virtual epoch."""
    loss_thresholds: Annotated[
        str | None, tyro.conf.arg(metavar="LOSS,LOSS,...", help_behavior_hint="")
    ] = None
    """Keep the first whose validation loss is at or below each of these."""
    yes: bool = False
    """Delete."""


@dataclass(frozen=True)
class Pruning:
    """What goes and what stays, and why."""

    store: Store
    statuses: tuple[Status, ...]
    """Oldest first."""
    plan: Plan
    damaged: Mapping[CheckpointId, str]
    """What was found not to verify, and why."""

    def text(self) -> str:
        """For a terminal: a table, and the totals as the last line."""
        doomed = set(self.plan.delete)
        if not self.statuses:
            return f"{self.store.url} has no checkpoints yet"
        rows = [("checkpoint", "bytes", "", "why")]
        rows += [
            (str(s.id), size(s.bytes), "goes" if s.id in doomed else "stays", self._why(s))
            for s in self.statuses
        ]
        freed = sum(s.bytes for s in self.statuses if s.id in doomed)
        stay = len(self.statuses) - len(doomed)
        total = f"{count(len(doomed), 'checkpoint')} to delete ({size(freed)}), {stay} to keep"
        return "\n".join([columns(rows), total])

    def run(self) -> int:
        """Delete; returns the bytes freed, with those of files that dead writers left unfinished."""
        return retention.prune(self.store, self.plan.delete)

    def _why(self, status: Status) -> str:
        state = self.damaged.get(status.id) or ("" if status.state == "committed" else why(status))
        reason = self.plan.keep.get(status.id)
        if reason is None:
            return state or "nothing keeps it"
        return f"{reason} ({state})" if state else reason


def main(argv: Sequence[str]) -> int:
    """`raymat prune URL --keep N`; returns the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat prune")
    policy = policy_of(options)
    with ProgressBar("verify the newest") as progress:
        pruning = prepare_pruning(
            open_run(options.url), policy, epochs=options.keep_epochs, progress=progress
        )
    print(pruning.text())
    if not pruning.statuses:
        return 0
    if options.yes:
        print(f"deleted: {size(pruning.run())} freed")
    else:
        print("dry run, nothing was deleted: add --yes to delete")
    return 0


def policy_of(options: Options) -> RetentionPolicy:
    """What the options ask to keep.

    Raises:
        ConfigError: an option that cannot be used.
    """
    for flag, value, least in (
        ("--keep", options.keep, 1),
        ("--keep-best", options.keep_best, 0),
        ("--every", 1 if options.every is None else options.every, 1),
    ):
        if value < least:
            raise ConfigError(f"{flag} must be at least {least}, got {value}")
    return RetentionPolicy(
        keep=options.keep,
        best="min" if options.keep_best else None,
        keep_best=max(1, options.keep_best),
        every=options.every,
        thresholds=_numbers(options.loss_thresholds or ""),
    )


def prepare_pruning(
    store: Store,
    policy: RetentionPolicy,
    *,
    epochs: bool = False,
    progress: ProgressBar | None = None,
) -> Pruning:
    """Decide what of a run goes; nothing is deleted. `epochs`: keep those at the ends of epochs.

    Raises:
        CheckpointError: there are committed checkpoints, but none verifies. ConfigError: the ends of
        epochs are not known. StorageError: there is no such run, or it cannot be read.
    """
    statuses = list_checkpoints(store)
    stored = read_run(store) or {}
    good, damaged = newest_good(store, statuses, run=stored.get("run_id"), progress=progress)
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
    policy = replace(policy, best=None if policy.best is None else mode)
    found = retention.plan(
        statuses,
        policy,
        # One that is still training has this number; torn ones of attempts before it are dead.
        attempt=highest_attempt(store) or None,
        metrics={s.id: values[s.id.step] for s in statuses if s.id.step in values},
        epoch_ends=_epoch_ends(store, stored, [s.id.step for s in statuses]) if epochs else (),
        # Of which a validation beside training may still find that it is the best.
        protected=[s.id for s in statuses if s.id.step == extra.get("pending_validation")],
        damaged=damaged,
    )
    return Pruning(store, tuple(reversed(statuses)), found, damaged)


def _epoch_ends(store: Store, stored: Mapping[str, Any], steps: Collection[int]) -> set[int]:
    """Those of `steps` at which the schedule of the run with this run.json ends a virtual epoch."""
    if not stored:
        raise ConfigError(f"--keep-epochs needs {store.url}/run.json, which is missing")
    config = from_dict(stored["config"])
    schedule = Schedule.of(config, prepare(config, store).order)
    return {step for step in steps if step > 0 and schedule.ends_epoch(step)}


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas."""
    try:
        found = tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise ConfigError(f"--loss-thresholds: expected numbers like 0.5,0.4, got {text!r}")
    return found
