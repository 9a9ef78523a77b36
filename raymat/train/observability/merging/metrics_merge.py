"""Merging of metrics: neighbouring segments become one of the same form, which replaces them by the reader's own rule."""

from __future__ import annotations

from raymat.storage.bulk import read_many
from raymat.storage.store import Store
from raymat.train.observability.events import read_lines
from raymat.train.observability.merging.merge_plan import next_merge
from raymat.train.observability.metrics_log import Segment, hidden, list_segments, segment_path


class MetricsMerge:
    """Merges metrics for an attempt, as long as no later one has written any.

    A part is deleted only once an object is there that has all of it that counts. So it does no harm if the process is
    killed at any point, if two do this at once, or if a late writer brings a part back.
    """

    def __init__(self, store: Store, attempt: int) -> None:
        self._store, self._attempt = store, attempt

    def __call__(self) -> bool:
        """Merge one group; return whether there may be another.

        Raises:
            StorageError: the storage fails, or another has merged the same meanwhile.
        """
        segments, needless = list_segments(self._store)
        if any(s.attempt > self._attempt for s in [*segments, *needless]):
            return False
        # The next attempt may need them, until this one has come as far.
        kept = {segment.path for segment, _ in hidden(segments, needless)}
        needless = [segment for segment in needless if segment.path not in kept]
        group = next_merge([segment.size for segment in segments])
        merged = [] if group is None else segments[group]
        if kept.intersection(segment.path for segment in merged):
            merged = []
        if merged:
            self._write(merged)
        if merged or needless:
            self._store.delete([segment.path for segment in [*needless, *merged]])
        return bool(merged)

    def _write(self, parts: list[Segment]) -> None:
        """Write what counts of `parts` as one segment."""
        contents = read_many(self._store, [part.path for part in parts])
        lines = [_counting(part, data) for part, data in zip(parts, contents, strict=True)]
        newest = parts[-1]
        self._store.write(segment_path(parts[0].first, newest.last, newest.attempt), lines)


def _counting(part: Segment, data: bytes) -> bytes:
    """Return the lines of a segment that no later attempt has replaced, unchanged."""
    lines = data.splitlines()
    if part.until <= part.last:
        lines = [line for line in lines if _step(line) < part.until]
    return b"".join(line + b"\n" for line in lines)


def _step(line: bytes) -> float:
    rows = read_lines(line)
    step = rows[0].get("step") if rows else None
    return step if isinstance(step, int) else float("inf")
