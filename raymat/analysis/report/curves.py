"""A run's curves, thinned to what a screen can show, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from raymat.storage.bulk import read_many, until_present
from raymat.storage.store import Store
from raymat.train.observability.events import read_lines
from raymat.train.observability.metrics_log import list_segments

MOST_POINTS = 1500
"""Of one curve."""
SHOWN = ("loss", "examples_per_second", "data_wait")
"""Columns of a training row that have a curve; their means are shown where there are too many rows."""


@dataclass
class _Bucket:
    """The rows of some neighbouring steps."""

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    def add(self, step: int, row: dict[str, Any]) -> None:
        self.step = max(self.step, step)
        for name in SHOWN:
            if _is_number(row.get(name)):
                self.sums[name] = self.sums.get(name, 0.0) + row[name]
                self.counts[name] = self.counts.get(name, 0) + 1
        rates = row.get("lr")
        if isinstance(rates, dict):
            self.rates = {str(n): v for n, v in rates.items() if _is_number(v)}

    def mean(self, name: str) -> float | None:
        return self.sums[name] / self.counts[name] if name in self.counts else None


@dataclass(frozen=True)
class Curves:
    """Points by step. A value is None where a row lacks it, or it was not finite."""

    steps: list[int]
    train: dict[str, list[float | None]]
    rates: dict[str, list[float | None]]
    """Learning rates by part of the network."""
    valid_steps: list[int]
    valid: list[float | None]
    """The run's best metric in its validations."""


def read_curves(store: Store, metric: str) -> Curves:
    """Read a run's rows, object by object. `metric`: of its validations. Raises StorageError."""
    return until_present(lambda: _thin(store, metric))


def _thin(store: Store, metric: str) -> Curves:
    segments, _ = list_segments(store)
    last = max((segment.last for segment in segments), default=0)
    width = last // MOST_POINTS + 1
    buckets: dict[int, _Bucket] = {}
    valid: dict[int, float | None] = {}
    for step, row in _rows(store):
        if row.get("kind") == "train":
            buckets.setdefault(step // width, _Bucket()).add(step, row)
        elif row.get("kind") == "valid":
            metrics = row.get("metrics")
            value = row.get("loss") if metric == "loss" else (metrics or {}).get(metric)
            valid[step] = value if _is_number(value) else None
    points = [buckets[key] for key in sorted(buckets)]
    names = sorted({name for point in points for name in point.rates})
    steps = sorted(valid)[-MOST_POINTS:]
    return Curves(
        [point.step for point in points],
        {name: [point.mean(name) for point in points] for name in SHOWN},
        {name: [point.rates.get(name) for point in points] for name in names},
        steps,
        [valid[step] for step in steps],
    )


def _rows(store: Store) -> Iterator[tuple[int, dict[str, Any]]]:
    segments, _ = list_segments(store)
    contents = read_many(store, [segment.path for segment in segments])
    for segment, data in zip(segments, contents, strict=True):
        for row in read_lines(data):
            step = row.get("step")
            if isinstance(step, int) and step < segment.until:
                yield step, row


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e300
