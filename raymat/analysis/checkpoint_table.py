"""A run's checkpoints with the values of their validations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymat.checkpoint.catalog import Status, mark_newer, newest_extra
from raymat.storage.store import Store
from raymat.train.run.run_url import list_checkpoints
from raymat.train.validation.criteria import metric_of, ranked, validated

MANIFESTS = 20
"""How many of the newest checkpoints are compared with their manifests, at one request per rank."""


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint. `world`, `modified`, `age` and `value` are None where they are not known."""

    checkpoint: str
    step: int
    attempt: int
    world: int | None
    """Workers that wrote it."""
    bytes: int
    modified: float | None
    """Unix seconds."""
    age: float | None
    """Seconds."""
    state: str
    """committed, torn or newer."""
    reason: str
    """Why it is not committed."""
    value: float | None
    """The run's --best-metric in the validation after its step."""
    best: bool
    """Whether it is the committed checkpoint with the best value, the one that retention keeps as best."""


@dataclass(frozen=True)
class CheckpointTable:
    """A run's checkpoints, oldest first, and its best validation, which may have no checkpoint."""

    url: str
    rows: tuple[CheckpointRow, ...]
    best_validation: tuple[int, float] | None
    """Step and value."""
    metric: str = "loss"
    """The run's --best-metric."""

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the best checkpoint."""
        return next(((r.step, r.value) for r in self.rows if r.best and r.value is not None), None)

    @property
    def torn(self) -> int:
        """How many are torn."""
        return sum(row.state == "torn" for row in self.rows)

    @property
    def newer(self) -> int:
        """How many a newer raymat wrote."""
        return sum(row.state == "newer" for row in self.rows)

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(row.bytes for row in self.rows)


def tabulate(store: Store, now: float | None = None) -> CheckpointTable:
    """Tabulate a run's checkpoints. `now`: Unix seconds, default the clock's.

    Takes one listing, the manifests and states of the newest 20, and one small file. Raises StorageError if there is
    no such run or its storage cannot be read.
    """
    statuses = list_checkpoints(store, manifests=MANIFESTS)
    statuses[:MANIFESTS] = mark_newer(store, statuses[:MANIFESTS])
    extra = newest_extra(store, statuses)
    metric, mode = metric_of(extra)
    values = validated(extra, metric)
    committed = [status for status in statuses if status.state == "committed"]
    there = {s.id.step: values[s.id.step] for s in committed if s.id.step in values}
    step = next(iter(ranked(there, mode)), None)
    # Of two attempts at that step the newer is the one that retention keeps.
    best = max((s.id for s in committed if s.id.step == step), default=None)
    now = time.time() if now is None else now
    rows = tuple(_row(status, values, status.id == best, now) for status in reversed(statuses))
    top = next(iter(ranked(values, mode)), None)
    return CheckpointTable(store.url, rows, None if top is None else (top, values[top]), metric)


def _row(status: Status, values: Mapping[int, Any], best: bool, now: float) -> CheckpointRow:
    committed = status.state == "committed"
    return CheckpointRow(
        checkpoint=str(status.id),
        step=status.id.step,
        attempt=status.id.attempt,
        world=status.world or None,
        bytes=status.bytes,
        modified=status.modified or None,
        age=now - status.modified if status.modified else None,
        state=status.state,
        reason="" if committed else status.summary,
        value=values.get(status.id.step) if committed else None,
        best=best,
    )
