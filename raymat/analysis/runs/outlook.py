"""How a run goes right now, for whoever follows it: where it stands, how fast it is, and what happened last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymat.analysis.goodput.ledger import Cause
from raymat.analysis.runs.summary import RunReader, RunSummary
from raymat.storage.bulk import until_present
from raymat.storage.store import Store
from raymat.train.observability.events import read_lines
from raymat.train.observability.logger import Row
from raymat.train.observability.metrics_log import list_segments
from raymat.train.run.lease.entries import PACE, Pace


@dataclass(frozen=True)
class Outlook:
    """A run at one moment."""

    summary: RunSummary
    row: Row | None
    """The newest row of training that is in storage."""
    step_seconds: float | None
    """How long a step takes on the whole, with saves and validations: by the newest two commits."""
    shares: Mapping[Cause, float]
    """Share of the workers' time by cause, the largest first."""
    events: Sequence[Mapping[str, Any]]
    """All that happened, oldest first."""

    @property
    def step(self) -> int:
        """The step that the run is likely to be at: what is in storage is as old as the newest commit."""
        s = self.summary
        if s.state != "training" or s.committed is None or not self.step_seconds:
            return s.step
        guess = s.step + int(max(0.0, s.active - s.committed) / self.step_seconds)
        return guess if s.steps is None else min(guess, max(s.step, s.steps - 1))

    @property
    def seconds_left(self) -> float | None:
        """How long the rest of the run takes at this pace; None if that is not known."""
        if self.summary.steps is None or self.step_seconds is None:
            return None
        return (self.summary.steps - self.step) * self.step_seconds


class RunFollower:
    """Reads how one run goes, again and again: three requests if nothing has happened, some ten more after a commit."""

    def __init__(self, store: Store, pace: Pace = PACE) -> None:
        self._reader = RunReader(store, pace)
        self._store = store
        self._row: Row | None = None
        self._row_of = -1

    def read(self) -> Outlook:
        """Read how the run goes. Raises StorageError if its storage fails, NewerFormatError if a newer raymat wrote it."""
        summary = self._reader.read_or_raise()
        if summary.step != self._row_of:
            self._row, self._row_of = until_present(self._read_row), summary.step
        events, ledger = self._reader.events.events, self._reader.ledger
        shares: dict[Cause, float] = {}
        if ledger is not None and ledger.slot_seconds:
            causes = sorted(ledger.by_cause.items(), key=lambda item: -item[1])
            shares = {cause: seconds / ledger.slot_seconds for cause, seconds in causes}
        return Outlook(summary, self._row, _step_seconds(events), shares, events)

    def _read_row(self) -> Row | None:
        segments, _ = list_segments(self._store)
        newest = max(segments, key=lambda segment: segment.last, default=None)
        if newest is None:
            return None
        rows = read_lines(self._store.read(newest.path))
        return next((row for row in reversed(rows) if row.get("kind") == "train"), None)


def _step_seconds(events: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the seconds of a step between the newest two commits of the newest attempt that has two."""
    later: Mapping[str, Any] | None = None
    for event in reversed(events):
        if event.get("kind") != "commit" or not isinstance(event.get("step"), int):
            continue
        if later is not None and later.get("attempt") == event.get("attempt"):
            steps, seconds = later["step"] - event["step"], later["time"] - event["time"]
            if steps > 0 and seconds > 0:
                return float(seconds / steps)
        later = event
    return None
