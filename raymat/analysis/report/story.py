"""All that a page tells of a run, read from its storage alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from raymat.analysis.checkpoint_table import CheckpointTable, tabulate
from raymat.analysis.goodput.attempts import AttemptRecord, records
from raymat.analysis.goodput.ledger import Ledger
from raymat.analysis.report.curves import Curves, read_curves
from raymat.analysis.report.sample_pictures import newest_pictures
from raymat.analysis.restart_phases import Restart, restarts
from raymat.analysis.runs.summary import MALFORMED, RunReader, RunSummary
from raymat.config.prices import Prices
from raymat.errors import NewerFormatError, StorageError
from raymat.storage.store import Store
from raymat.train.run.run_url import left_out, meant_run

T = TypeVar("T")


@dataclass(frozen=True)
class Story:
    """A run's whole past. What could not be read is empty, and named in `gaps`."""

    summary: RunSummary
    config: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    """Oldest first."""
    ledger: Ledger
    prices: Prices | None
    attempts: Sequence[AttemptRecord]
    restarts: Sequence[Restart]
    curves: Curves
    checkpoints: CheckpointTable | None
    pictures: tuple[int, dict[str, bytes]]
    """Of which step, and JPEGs by name."""
    gaps: Sequence[str]
    """What is missing, and why."""


def read_story(store: Store, prices: Prices | None = None) -> Story:
    """Read a run. `prices`: those of its machines, if they are known.

    Raises:
        StorageError: there is no such run, or its storage cannot be read. NewerFormatError: a newer raymat wrote it.
    """
    reader, gaps = RunReader(store), list[str]()
    summary = reader.read_or_raise()
    if not summary.stage:
        raise StorageError(
            f"there is no run to report on at {store.url}: {summary.reason}{meant_run(store)}"
        )
    events = reader.events.events
    if not reader.events.whole:
        gaps.append("The run has more events than a report reads: the oldest are missing.")
    if reader.events.damaged:
        gaps.append(f"{left_out(reader.events.damaged)}.")

    def attempt(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except NewerFormatError:
            raise
        except (StorageError, *MALFORMED) as error:
            gaps.append(f"The {what} cannot be shown: {error}")
            return otherwise

    no_pictures: tuple[int, dict[str, bytes]] = (0, {})
    no_curves = Curves([], {}, {}, [], [])
    return Story(
        summary,
        reader.config,
        events,
        reader.ledger or Ledger(()),
        prices,
        attempt("attempts", lambda: records(events)[1], []),
        attempt("restarts", lambda: restarts(events), []),
        attempt("curves", lambda: read_curves(store, summary.metric), no_curves),
        attempt("checkpoints", lambda: tabulate(store), None),
        attempt("pictures", lambda: newest_pictures(store), no_pictures),
        gaps,
    )
