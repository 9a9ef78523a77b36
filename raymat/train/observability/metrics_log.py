"""A run's metrics as JSON lines in its metrics/ folder, one object for each committed span of steps.

An object's name gives its span and attempt: `000000101-000000200-a003.jsonl` has the rows of steps 101 to 200, written by
attempt 3 before it committed step 200. An attempt's first span begins after the step that it resumed from, and so tells
which rows of earlier attempts it replaces. Objects are never rewritten or deleted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymat.storage.store import Store
from raymat.train.observability.events import read_lines
from raymat.train.observability.logger import Row, Spans

FOLDER = "metrics"
_NAME = re.compile(r"(?:^|/)(\d+)-(\d+)-a(\d+)\.jsonl$")


class MetricsLog:
    """A logger that writes the rows of one attempt."""

    def __init__(self, store: Store, attempt: int) -> None:
        self._store = store
        self._attempt = attempt
        self._first = 1
        self._rows: list[Row] = []
        self._spans = Spans()

    def resumed(self, step: int) -> None:
        self._first = step + 1

    def row(self, row: Row) -> None:
        self._rows.append(row)

    def images(self, step: int, grids: Mapping[str, NDArray[np.uint8]]) -> None:
        return

    def cut(self, step: int) -> None:
        """Close the span, even if it has no rows, since it replaces those of earlier attempts."""
        if step < self._first:
            return
        name = f"{FOLDER}/{self._first:09d}-{step:09d}-a{self._attempt:03d}.jsonl"
        self._spans.add(step, name, self._rows)
        self._first = step + 1
        self._rows = []

    def flush(self, step: int) -> None:
        self._spans.flush(step, self._write)

    def _write(self, name: str, rows: list[Row]) -> None:
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in rows]
        self._store.write(name, "".join(lines).encode())


@dataclass(frozen=True)
class _Segment:
    attempt: int
    first: int
    path: str


def read_metrics(store: Store) -> list[Row]:
    """Return the run's rows by step, the newest of each step's training and validation rows.

    Raises:
        StorageError: the storage cannot be read.
    """
    kept: dict[tuple[int, str], Row] = {}
    for attempt in _by_attempt(store):
        begin = min(segment.first for segment in attempt)
        kept = {key: row for key, row in kept.items() if key[0] < begin}
        for segment in attempt:
            for row in read_lines(store.read(segment.path)):
                if isinstance(row.get("step"), int):
                    kept[row["step"], str(row.get("kind"))] = row
    return [kept[key] for key in sorted(kept)]


def _by_attempt(store: Store) -> list[list[_Segment]]:
    """Return the segments of each attempt, oldest attempt first, by step within it."""
    found: dict[int, list[_Segment]] = {}
    for file in store.list(FOLDER):
        match = _NAME.search(file.path)
        if match:
            attempt = int(match[3])
            found.setdefault(attempt, []).append(_Segment(attempt, int(match[1]), file.path))
    return [sorted(found[a], key=lambda s: s.first) for a in sorted(found)]
