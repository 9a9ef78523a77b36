"""Where a run stands, from its storage alone: nothing is written, no driver is asked, no clocks of two machines are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from raymat.analysis.event_words import words_of
from raymat.analysis.goodput.ledger import Ledger, make_ledger
from raymat.analysis.runs.event_reader import EventReader
from raymat.checkpoint.catalog import Status, scan
from raymat.errors import NewerFormatError, StorageError
from raymat.storage.store import Store
from raymat.train.run.lease.entries import PACE, Pace
from raymat.train.run.lease.observe import LeaseObserver, LeaseView
from raymat.train.run.run_file import read_run
from raymat.train.validation.criteria import Validation, best_of

State = Literal[
    "training", "stopped", "died", "complete", "unclear", "broken", "newer", "no run", "unreadable"
]
"""training: a driver renews its lease. stopped: its driver has left. died: the driver is gone, or cut off, without leaving.
unclear: its lease must be watched for longer. broken: its run.json is damaged or gone. newer: a newer raymat wrote it. no
run: another folder. unreadable: the storage refuses it, or does not answer."""

MALFORMED = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError),
    *(OverflowError, RecursionError),
)
"""What values raise that are not what this version writes."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Where a run stands. None: unknown, or not there yet."""

    name: str
    url: str
    state: State
    reason: str = ""
    """Why it stopped, or cannot be read; who drives or drove it."""
    stage: str | None = None
    step: int = 0
    """Of the newest committed checkpoint."""
    steps: int | None = None
    """Of the whole run."""
    committed: float | None = None
    """When the newest checkpoint was committed, in Unix seconds by the storage's clock."""
    goodput: float | None = None
    """Share of the time of all workers that was training which counts; None if not all events were read."""
    metric: str = "loss"
    """The run's --best-metric."""
    best: float | None = None
    """Its best value in a validation."""
    best_step: int | None = None
    workers: int | None = None
    """Of the newest attempt."""
    attempts: int = 0
    """Starts of the workers so far."""
    active: float = 0.0
    """When the run last wrote an event, in Unix seconds by the storage's clock; 0 if unknown."""


class RunReader:
    """Reads where one run stands, again and again."""

    def __init__(self, store: Store, pace: Pace = PACE) -> None:
        self.store = store
        self.events = EventReader(store)
        self._lease = LeaseObserver(store, pace)
        self.config: dict[str, Any] = {}
        """The run's configuration; empty until it is read."""
        self.ledger: Ledger | None = None
        """Where its time went; None until it is read, or if its events cannot be made sense of."""
        self._checkpoints: Sequence[Status] = ()

    @property
    def name(self) -> str:
        """The run's name."""
        return self.store.root.rpartition("/")[2]

    def read(self, storage_now: float = 0.0) -> RunSummary:
        """Read all that has changed: four listings and few objects. A fault is a state of the run, and never raised.

        Args:
            storage_now: a time that the storage's clock has certainly passed, in Unix seconds.
        """
        try:
            return self.read_or_raise(storage_now)
        except NewerFormatError as error:
            return self._fault("newer", error.line)
        except StorageError as error:
            return self._fault("unreadable", error.line)

    def read_or_raise(self, storage_now: float = 0.0) -> RunSummary:
        """Do the same. Raises StorageError where the storage fails, NewerFormatError for a newer raymat's run."""
        view = self._lease.look(max(storage_now, self.events.modified))
        if self.events.refresh() or not self.config:
            self._checkpoints = scan(self.store)
            self.ledger = _ledger(self.events.events) if self.events.whole else None
            fault = self._read_config()
            if fault is not None:
                return fault
        return self._summary(view)

    def look_again(self, before: RunSummary, storage_now: float) -> RunSummary:
        """Return a summary that was unclear with what another look at the lease says. A fault of the storage leaves it so."""
        try:
            view = self._lease.look(storage_now)
        except StorageError:
            return before
        return replace(before, state=_state_of(view), reason=view.owner)

    def _read_config(self) -> RunSummary | None:
        """Read what the run is; return what it is otherwise."""
        try:
            run = read_run(self.store)
            if run is not None:
                self.config = dict(run["config"])
                return None
        except NewerFormatError:
            raise
        except StorageError as error:
            if "is damaged" in error.line:
                return self._fault("broken", error.line)
            raise
        except MALFORMED as error:
            return self._fault("broken", f"its run.json is damaged: {type(error).__name__}")
        if self.events.events or self._checkpoints:
            return self._fault("broken", "its run.json is missing")
        return self._fault("no run", "there is no run.json in it")

    def _fault(self, state: State, reason: str) -> RunSummary:
        return RunSummary(name=self.name, url=self.store.url, state=state, reason=reason)

    def _summary(self, view: LeaseView) -> RunSummary:
        config, events, ledger = self.config, self.events.events, self.ledger
        committed = [status for status in self._checkpoints if status.state == "committed"]
        newest = max(committed, key=lambda status: status.id, default=None)
        starts = [e for e in events if e.get("kind") == "start"]
        complete = _is_complete(events)
        ended = complete or view.state == "free"
        metric = str(config.get("best_metric", "loss"))
        best = _best(events, metric, "max" if config.get("best_mode") == "max" else "min")
        return RunSummary(
            name=self.name,
            url=self.store.url,
            state="complete" if complete else _state_of(view),
            reason=_ending(events) if ended else view.owner,
            stage=str(config.get("stage")),
            step=newest.id.step if newest else 0,
            steps=_whole(starts[-1].get("total_steps")) if starts else None,
            committed=(newest.modified or None) if newest else None,
            goodput=ledger.goodput if ledger is not None and ledger.slot_seconds else None,
            metric=metric,
            best=best.value(metric) if best else None,
            best_step=best.step if best else None,
            workers=_whole(starts[-1].get("world")) if starts else None,
            attempts=len({start.get("attempt") for start in starts}),
            active=max(self.events.modified, view.heard or 0.0),
        )


def _state_of(view: LeaseView) -> State:
    states: dict[str, State] = {"held": "training", "lapsed": "died", "free": "stopped"}
    return states.get(view.state, "unclear")


def _is_complete(events: Sequence[dict[str, Any]]) -> bool:
    """Return whether the run came to its end, and nobody has begun to make it longer since."""
    for event in reversed(events):
        if event.get("kind") in ("launch", "start", "longer"):
            return False
        if event.get("kind") == "end" and event.get("outcome") == "complete":
            return True
    return False


def _ending(events: Sequence[dict[str, Any]]) -> str:
    """Return why the run ended, in words; empty if no event tells."""
    for event in reversed(events):
        if event.get("kind") in ("end", "leave", "failure"):
            return words_of(event)
    return ""


def _best(events: Sequence[dict[str, Any]], metric: str, mode: Any) -> Validation | None:
    """Return the best validation: the newest that was the best when it was done, or of older versions' events the best value."""
    done = [e for e in events if e.get("kind") == "validation"]
    marked = [e for e in done if e.get("best")][-1:]
    try:
        values = [Validation(int(e["step"]), e["loss"], e["metrics"]) for e in marked or done]
        return best_of(values, metric, mode)
    except MALFORMED:
        return None


def _ledger(events: Sequence[dict[str, Any]]) -> Ledger | None:
    try:
        return make_ledger(events)
    except MALFORMED:
        return None


def _whole(value: object) -> int | None:
    return value if type(value) is int else None
