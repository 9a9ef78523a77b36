"""A run's metrics as JSON lines in its metrics/ folder, one object for each committed span of steps.

An object's name gives its span and attempt: `000000101-000000200-a003.jsonl` has the rows of steps 101 to 200, written by
attempt 3 before it committed step 200. An attempt's first span begins after the step that it resumed from, and so tells
which rows of earlier attempts it replaces. Objects are never rewritten.

A run's many small objects are merged beside training (`merging/`) into ones of the same form: `000000001-000000400-a003`
has all that counts of steps 1 to 400, of attempt 3 and of those before it. By the same rule it replaces its parts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from raymat.storage.bulk import read_many, until_present
from raymat.storage.fields import Count, Finite, Time, parse_fields
from raymat.storage.store import Store
from raymat.train.observability.events import read_lines
from raymat.train.observability.logger import Row, Spans

FOLDER = "metrics"
MOST_ON_THEIR_WAY = 2
"""Snapshots that an attempt may have on their way: one that is written, and one that waits."""
_NAME = re.compile(r"(?:^|/)(\d+)-(\d+)-a(\d+)\.jsonl$")


class _Place(TypedDict):
    step: Count
    kind: str


class _Columns(_Place, total=False):
    """What is read of a row."""

    examples: Count
    epoch: Finite
    loss: Finite | None
    digest: str
    time: Time
    lr: dict[str, Finite]
    count: Count
    metrics: dict[str, Finite | None]
    step_seconds: Finite | None
    data_wait: Finite | None
    examples_per_second: Finite | None
    memory: Finite | None
    goodput: Finite | None


def segment_path(first: int, last: int, attempt: int) -> str:
    """Return the path of the object with the rows of steps `first` to `last`."""
    return f"{FOLDER}/{first:09d}-{last:09d}-a{attempt:03d}.jsonl"


class MetricsLog:
    """A logger that writes the rows of one attempt."""

    def __init__(self, store: Store, attempt: int) -> None:
        self._store = store
        self._attempt = attempt
        self._first = 1
        self._rows: list[Row] = []
        self._spans = Spans()

    def resumed(self, step: int) -> None:
        """Go on after `step`. Rows up to it count again where the attempt that replaced them did not get that far.

        That happens when a driver that was taken for dead still commits a checkpoint, newer than any of its successor's.
        """
        self._first = step + 1
        segments, needless = list_segments(self._store)
        first = min((first for _, first in hidden(segments, needless)), default=step + 1)
        if first <= step:
            # All attempts find the same for a step; of two rows, the one that counts is kept.
            whole = [replace(s, until=math.inf) for s in [*needless, *segments]]
            rows = _rows(self._store, whole) | _rows(self._store, segments)
            self._write(
                segment_path(first, step, self._attempt),
                [rows[key] for key in sorted(rows) if first <= key[0] <= step],
            )

    def row(self, row: Row) -> None:
        self._rows.append(row)

    def images(self, step: int, grids: Mapping[str, NDArray[np.uint8]]) -> None:
        return

    def cut(self, step: int) -> None:
        """Close the span, even if it has no rows, since it replaces those of earlier attempts."""
        if step < self._first:
            return
        name = segment_path(self._first, step, self._attempt)
        self._spans.add(step, name, self._rows)
        self._first = step + 1
        self._rows = []

    def flush(self, step: int) -> None:
        self._spans.flush(step, self._write)

    def _write(self, name: str, rows: list[Row]) -> None:
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        self._store.write(name, "".join(lines).encode())


@dataclass(frozen=True)
class Segment:
    """One object: the rows of steps `first` to `last`, of `attempt` and, if it was merged, of attempts before it."""

    path: str
    size: int
    attempt: int
    first: int
    last: int
    until: float = math.inf
    """The first step from which a later attempt went on: rows from there on do not count."""


def list_segments(store: Store) -> tuple[list[Segment], list[Segment]]:
    """Return the segments whose rows count, by step, and those that others have replaced or contain.

    Raises:
        StorageError: the storage cannot be read.
    """
    found: dict[int, list[Segment]] = {}
    for file in store.list(FOLDER):
        if match := _NAME.search(file.path):
            first, last, attempt = map(int, match.groups())
            found.setdefault(attempt, []).append(
                Segment(file.path, file.size, attempt, first, last)
            )
    counting: list[Segment] = []
    needless: list[Segment] = []
    until = math.inf
    for attempt in sorted(found, reverse=True):
        contained = -1
        of_attempt = []
        for segment in sorted(found[attempt], key=lambda s: (s.first, -s.last)):
            # An attempt's own spans are disjoint: only a merged one contains another.
            if segment.first >= until or segment.last <= contained:
                needless.append(segment)
            else:
                of_attempt.append(replace(segment, until=until))
                contained = max(contained, segment.last)
        counting = of_attempt + counting
        until = min(until, *(segment.first for segment in found[attempt]))
    return counting, needless


def read_metrics(store: Store) -> list[Row]:
    """Return the run's rows by step, the newest of each step's training and validation rows.

    Raises:
        StorageError: the storage cannot be read.
    """
    return until_present(lambda: _read_rows(store))


def _read_rows(store: Store) -> list[Row]:
    segments, _ = list_segments(store)
    kept = _rows(store, segments)
    return [kept[key] for key in sorted(kept)]


def _rows(store: Store, segments: list[Segment]) -> dict[tuple[int, str], Row]:
    """Read the rows of `segments` by step and kind, a later segment's instead of an earlier one's."""
    kept: dict[tuple[int, str], Row] = {}
    contents = read_many(store, [segment.path for segment in segments])
    for segment, data in zip(segments, contents, strict=True):
        for row in read_lines(data):
            if _is_row(row) and row["step"] < segment.until:
                kept[row["step"], row["kind"]] = row
    return kept


def _is_row(row: Row) -> bool:
    try:
        parse_fields(_Columns, row)
    except ValueError:
        return False
    return True


def hidden(segments: list[Segment], needless: list[Segment]) -> list[tuple[Segment, int]]:
    """Return the segments whose rows do not count although no other covers their steps, and the first such step.

    Of each attempt only the newest: those whose checkpoints may still have been on their way when it was replaced.
    `segments`, `needless`: as `list_segments` returns them.
    """
    spans = sorted((s.first, min(s.last, s.until - 1)) for s in segments)
    newest: dict[int, list[tuple[Segment, float]]] = {}
    for part in [*((s, s.first) for s in needless), *((s, s.until) for s in segments)]:
        newest.setdefault(part[0].attempt, []).append(part)
    found = []
    for segment, step in (
        part
        for parts in newest.values()
        for part in sorted(parts, key=lambda part: part[0].last)[-MOST_ON_THEIR_WAY:]
    ):
        for first, last in spans:
            if first <= step <= last:
                step = last + 1
        if step <= segment.last:
            found.append((segment, int(step)))
    return found
