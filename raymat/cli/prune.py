"""`raymat prune`: delete the checkpoints of a run that nobody wants to keep.

It may run beside training: it never deletes the newest checkpoint that verifies, and training never goes back behind
that one. What was left unfinished goes only while nobody trains: it takes the run's lease meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from raymat.analysis.pruning import Pruning, plan_pruning
from raymat.checkpoint.retention import RetentionPolicy
from raymat.config.command_line import parse_options
from raymat.config.options import Spelling, Url
from raymat.console import ProgressBar, columns, count, size
from raymat.errors import ConfigError, LeaseError, StorageError
from raymat.storage.store import Store
from raymat.storage.urls import delete_right
from raymat.train.run.lease.lease import Lease
from raymat.train.run.run_url import list_checkpoints, open_run_url


@dataclass(frozen=True, kw_only=True)
class Options:
    """Delete the checkpoints of a run that nothing keeps. Without --yes, only print what would be deleted.

    The newest checkpoint is read whole first: only what verifies counts, and the newest that does always stays. Losses
    are of the validations recorded in it. Torn checkpoints go if nobody trains the run; if somebody does, those that a
    newer good one supersedes and that are not being written. Exit code: 0, or 2 if it could not read or delete.
    """

    url: Url
    """The run: STORAGE/NAME, any fsspec URL."""
    keep: int
    """Keep the newest N."""
    keep_best: int = 1
    """Keep the N with the lowest validation loss; 0 for none."""
    every: Annotated[int | None, Spelling("STEPS")] = None
    """Keep those whose step is a multiple of this."""
    keep_epochs: bool = False
    """Keep those at the end of a virtual epoch."""
    loss_thresholds: Annotated[str | None, Spelling("LOSS,LOSS,...")] = None
    """Keep the first whose validation loss is at or below each of these."""
    yes: bool = False
    """Delete."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat prune URL --keep N` and return the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat prune")
    _policy(options)
    store = open_run_url(options.url)
    if not list_checkpoints(store):
        print(f"{store.url} has no checkpoints yet")
    elif not options.yes:
        print(_text(_plan(store, options, alone=True)))
        print(
            "dry run, nothing was deleted: add --yes to delete; what is unfinished stays while somebody trains the run"
        )
    else:
        freed = _prune(store, options)
        print(f"deleted: {size(freed)} freed")
    return 0


def _prune(store: Store, options: Options) -> int:
    """Delete, print what and why, and return the bytes freed."""
    with _alone(store) as why_not:
        pruning = _plan(store, options, alone=why_not is None)
        print(_text(pruning))
        freed = pruning.delete()
    if not store.may_delete:
        raise StorageError(
            f"nothing was deleted: this account may not delete in {store.url}; give it "
            f"{delete_right(store.url)}, or let another account prune"
        )
    if isinstance(why_not, StorageError) and freed:
        return freed + _prune(store, options)  # there is room now for the lease's object
    if why_not is not None:
        print(f"what is unfinished stays: {why_not.line}")
    return freed


def _plan(store: Store, options: Options, alone: bool) -> Pruning:
    policy = _policy(options)
    with ProgressBar("verify the newest") as progress:
        return plan_pruning(
            store, policy, epochs=options.keep_epochs, alone=alone, progress=progress
        )


@contextmanager
def _alone(store: Store) -> Iterator[LeaseError | StorageError | None]:
    """Hold the run's lease in the block, so that nobody trains meanwhile. Gives why not, if it cannot be had."""
    try:
        lease = Lease.acquire(store, take_over=None, say=print)
    except (LeaseError, StorageError) as error:  # storage that is full takes no object of the lease
        yield error
        return
    with lease:
        lease.wait_until_alone()
        yield None


def _text(pruning: Pruning) -> str:
    """Format a table for a terminal, with the totals as the last line."""
    doomed = set(pruning.plan.delete)
    rows = [("checkpoint", "bytes", "", "why")]
    for s in pruning.statuses:
        goes = "goes" if s.id in doomed else "stays"
        rows.append((str(s.id), size(s.bytes), goes, pruning.reason(s)))
    freed = sum(s.bytes for s in pruning.statuses if s.id in doomed)
    stay = len(pruning.statuses) - len(doomed)
    total = f"{count(len(doomed), 'checkpoint')} to delete ({size(freed)}), {stay} to keep"
    return "\n".join([columns(rows), total])


def _policy(options: Options) -> RetentionPolicy:
    """Turn the options into a policy.

    Raises:
        ConfigError: an option cannot be used.
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


def _numbers(text: str) -> tuple[float, ...]:
    """Parse numbers between commas."""
    try:
        found = tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise ConfigError(f"--loss-thresholds: expected numbers like 0.5,0.4, got {text!r}")
    return found
