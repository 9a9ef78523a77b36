"""`raymat checkpoints`: what a run has in storage."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raymat.checkpoint.catalog import Status, newest_extra
from raymat.cli.runs import list_checkpoints, open_run, why
from raymat.console import Url, age, columns, count, parse_options, size
from raymat.train.validation.criteria import metric_of, ranked, validated

MANIFESTS = 20
"""So many of the newest are held against their manifests; a request for each of their ranks."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the checkpoints of a run, oldest first.

    Committed means that all files are there; of the newest 20 also their sizes are compared with
    the manifests. Whether every byte is right says raymat verify. Values are of the validations
    that the newest checkpoint remembers. Exit code: 0, or 2 if there is no such run.
    """

    url: Url
    """The run: STORAGE/NAME, any fsspec URL."""
    json: bool = False
    """Print JSON instead of a table; times in Unix seconds, ages in seconds."""


@dataclass(frozen=True)
class Row:
    """One checkpoint. `world`, `modified` and `loss` are None where nobody knows them."""

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
    """committed or torn."""
    reason: str
    """Why it is torn."""
    value: float | None
    """Of the run's --best-metric (the loss, if it has no other) in the validation after its step."""
    best: bool
    """Whether no committed checkpoint has a better value: the one that retention calls best."""


@dataclass(frozen=True)
class CheckpointTable:
    """A run's checkpoints, oldest first, and its best validation, which may have no checkpoint."""

    url: str
    rows: tuple[Row, ...]
    best_validation: tuple[int, float] | None
    """Step and value."""
    metric: str = "loss"
    """The run's --best-metric."""

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and value of the best checkpoint."""
        return next(((r.step, r.value) for r in self.rows if r.best and r.value is not None), None)

    @property
    def line(self) -> str:
        """The totals in one line."""
        if not self.rows:
            return f"{self.url} has no checkpoints yet"
        torn = sum(row.state == "torn" for row in self.rows)
        text = f"{count(len(self.rows), 'checkpoint')}, {size(sum(r.bytes for r in self.rows))}: "
        text += f"{len(self.rows) - torn} committed, {torn} torn"
        if self.best is not None:
            text += f"; best: {self.metric} {self.best[1]:.6g} at step {self.best[0]}"
        if self.best_validation is not None and self.best_validation != self.best:
            step, value = self.best_validation
            text += f"; no checkpoint of the best validation, {value:.6g} at step {step}"
        return text

    def text(self) -> str:
        """For a terminal: a table, and the totals as the last line."""
        head = ("step", "attempt", "world", "bytes", "age", f"valid {self.metric}", "best", "state")
        table = [head, *map(_cells, self.rows)]
        return "\n".join([columns(table), self.line]) if self.rows else self.line

    def to_json(self) -> str:
        """The same as one JSON object."""
        rows = [
            {self.metric if k == "value" else k: v for k, v in asdict(r).items()} for r in self.rows
        ]
        content = {
            "run": self.url,
            "checkpoints": rows,
            "metric": self.metric,
            "best": _step_and_value(self.best, self.metric),
            "best_validation": _step_and_value(self.best_validation, self.metric),
            "committed": sum(row.state == "committed" for row in self.rows),
            "torn": sum(row.state == "torn" for row in self.rows),
            "bytes": sum(row.bytes for row in self.rows),
        }
        return json.dumps(content, indent=2, allow_nan=False)


def main(argv: Sequence[str]) -> int:
    """`raymat checkpoints URL`; returns the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat checkpoints")
    found = checkpoints(options.url)
    print(found.to_json() if options.json else found.text())
    return 0


def checkpoints(
    url: str, *, options: Mapping[str, Any] | None = None, now: float | None = None
) -> CheckpointTable:
    """The checkpoints of a run. `options`: as for `Store.open`; `now`: Unix seconds, default the clock's.

    Requests: one listing, the manifests of the newest 20, and one small file. Raises ConfigError or
    StorageError if `url` names no run or cannot be read.
    """
    store = open_run(url, options)
    statuses = list_checkpoints(store, manifests=MANIFESTS)
    extra = newest_extra(store, statuses)
    metric, mode = metric_of(extra)
    values = validated(extra, metric)
    committed = [status for status in statuses if status.state == "committed"]
    step = next(
        iter(
            ranked({s.id.step: values[s.id.step] for s in committed if s.id.step in values}, mode)
        ),
        None,
    )
    # Of two attempts at that step the newer is the one that retention keeps.
    best = max((s.id for s in committed if s.id.step == step), default=None)
    now = time.time() if now is None else now
    rows = tuple(_row(status, values, status.id == best, now) for status in reversed(statuses))
    top = next(iter(ranked(values, mode)), None)
    return CheckpointTable(store.url, rows, None if top is None else (top, values[top]), metric)


def _step_and_value(best: tuple[int, float] | None, metric: str) -> dict[str, Any] | None:
    return None if best is None else {"step": best[0], metric: best[1]}


def _row(status: Status, values: Mapping[int, float], best: bool, now: float) -> Row:
    committed = status.state == "committed"
    return Row(
        checkpoint=str(status.id),
        step=status.id.step,
        attempt=status.id.attempt,
        world=status.world or None,
        bytes=status.bytes,
        modified=status.modified or None,
        age=now - status.modified if status.modified else None,
        state=status.state,
        reason="" if committed else why(status),
        value=values.get(status.id.step) if committed else None,
        best=best,
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        str(row.step),
        str(row.attempt),
        "-" if row.world is None else str(row.world),
        size(row.bytes),
        "-" if row.age is None else age(row.age),
        "-" if row.value is None else f"{row.value:.6g}",
        "best" if row.best else "",
        row.reason or row.state,
    )
