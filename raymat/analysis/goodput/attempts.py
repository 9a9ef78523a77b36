"""What a run's events tell of each of its attempts: when it started, trained, saved, and how its training ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymat.train.observability.event_kinds import tells

Event = Mapping[str, Any]


@dataclass
class AttemptRecord:
    """One attempt. Times are Unix seconds; None where no event tells, since the attempt did not come so far."""

    number: int
    world: int
    started: float
    restored: float | None = None
    """When its workers had read the checkpoint that they went on from."""
    resumed: int | None = None
    """The step that they went on from."""
    batch: float | None = None
    """When its first batch had come."""
    trained: float | None = None
    """When its first step was done."""
    silent: float | None = None
    """When its workers were last heard of, or had left or ended: training was over by then."""
    over: float | None = None
    """When that was noticed."""
    complete: bool = False
    steps: list[tuple[float, int]] = field(default_factory=list)
    """What is known of its progress: (time, completed steps)."""
    saved: dict[int, float] = field(default_factory=dict)
    """By step: when training went on after its state had been copied for a checkpoint."""
    stalls: list[tuple[float, float]] = field(default_factory=list)
    """(time, seconds) for which training stood still to copy its state."""
    validations: list[tuple[float, float]] = field(default_factory=list)
    """(time of the end, seconds) for which training stood still for validations."""
    waits: list[tuple[float, float]] = field(default_factory=list)
    """(time, seconds) for which its steps had waited for data by then."""


@dataclass(frozen=True)
class Launch:
    """A driver took the run."""

    at: float
    slots: int
    """Workers that it may have at most."""
    left: float
    """When anything was last heard of the drivers and workers before it; `at` if there were none."""
    before: int
    """The newest attempt before it; 0 if there was none."""


@dataclass(frozen=True)
class Room:
    """From `at` on (Unix seconds) the cluster has room for so many workers."""

    at: float
    workers: int | None = None
    """None: that is not known."""
    least: int = 0
    """Workers that the run needs."""

    @property
    def lacks(self) -> bool:
        """Whether no workers can start."""
        return self.workers is not None and self.workers < self.least


def records(events: Iterable[Event]) -> tuple[list[Launch], list[AttemptRecord], list[Room]]:
    """Sort a run's events, oldest first, into launches, attempts, and changes of the cluster's room.

    Events of other kinds, of kinds that this version does not know, or without a time are passed over. Machines' clocks may
    differ: an attempt starts no earlier than its launch and the attempt before it, and what it does keeps its order.
    """
    heard: dict[int, float] = {}  # by attempt
    launches: list[Launch] = []
    rooms: list[Room] = []
    events = list(events)
    # First: by another clock, or one that was set back, other events of an attempt may come before its start.
    starts = [e for e in events if e.get("kind") == "start" and tells(e, _NEEDED)]
    attempts = {
        e["attempt"]: AttemptRecord(e["attempt"], max(1, int(e["world"])), e["time"])
        for e in starts
    }
    for event in events:
        kind, at, number = event.get("kind"), event.get("time"), event.get("attempt")
        if at is None:
            continue
        if kind == "launch":
            launches.append(_launch(event, heard, attempts))
            rooms.append(Room(at))  # the new driver has yet to count
        elif kind == "room" and tells(event, _NEEDED):
            rooms.append(Room(at, max(0, int(event["workers"])), int(event["least"])))
        elif number in attempts:
            record = attempts[number]
            if event.get("data_wait") is not None:
                record.waits.append((at, float(event["data_wait"])))
            if kind in _NOTES and tells(event, _NEEDED):
                _NOTES[kind](record, event)
        if kind not in _BEFORE_A_LAUNCH:
            heard[number or 0] = at
    found = [attempts[number] for number in sorted(attempts)]
    _put_in_order(launches, found)
    return launches, found, rooms


def _launch(
    event: Event, heard: Mapping[int, float], attempts: Mapping[int, AttemptRecord]
) -> Launch:
    """Return a launch. `heard`: by attempt, when it was last heard of; `attempts`: all of the run."""
    at, before = event["time"], event.get("attempt")
    if before is None:
        before = max((number for number, each in attempts.items() if each.started < at), default=0)
    told = [time for number, time in heard.items() if number <= before]
    left = max([*told, event.get("heard") or 0.0]) if told else at
    return Launch(at, _slots(event), min(at, left), before)


def _put_in_order(launches: Sequence[Launch], attempts: Iterable[AttemptRecord]) -> None:
    """Move times of attempts that lie before what they must have followed."""
    floor = 0.0
    for record in attempts:
        launched = (launch.at for launch in launches if launch.before < record.number)
        record.started = floor = max(record.started, floor, *launched)
        at = record.started
        for name in ("restored", "trained", "silent", "over"):
            if getattr(record, name) is not None:
                at = max(at, getattr(record, name))
                setattr(record, name, at)


def _slots(event: Event) -> int:
    """Return the workers that a launch asked for: `--workers N` or `MIN:MAX`."""
    most = str(event.get("config", {}).get("workers", 1)).rpartition(":")[2]
    return int(most) if most.isdigit() else 1


def _restore(record: AttemptRecord, event: Event) -> None:
    record.restored, record.resumed = event["time"], int(event["step"])


def _first_step(record: AttemptRecord, event: Event) -> None:
    record.trained = event["time"]
    record.resumed = record.resumed or 0  # nothing was restored: it began with the first step
    record.batch = event["time"] - event["seconds"] + event["batch"]
    record.steps.append((event["time"], int(event["step"])))


def _commit(record: AttemptRecord, event: Event) -> None:
    copied = event["time"] - event["seconds"]
    record.saved.setdefault(int(event["step"]), copied + event["stall"])
    record.steps.append((copied, int(event["step"])))
    record.stalls.append((copied, event["stall"]))


def _validation(record: AttemptRecord, event: Event) -> None:
    in_loop = event["place"] == "loop"
    record.validations.append((event["time"], event["seconds" if in_loop else "waited"]))
    if in_loop:  # beside training the step is that of the checkpoint, not of now
        record.steps.append((event["time"], int(event["step"])))


def _leave(record: AttemptRecord, event: Event) -> None:
    record.silent = record.over = event["time"]
    record.steps.append((event["time"], int(event["step"])))


def _end(record: AttemptRecord, event: Event) -> None:
    if event.get("outcome") == "complete":
        record.silent = record.over = event["time"]
        record.complete = True


def _failure(record: AttemptRecord, event: Event) -> None:
    if record.over is not None:
        return  # of workers that died before they had a number of their own
    signs = event["last"].values()
    silent = max([0.0, *(sign.get("silent", 0.0) for sign in signs)])  # by two machines' clocks
    record.over = event["time"]
    record.silent = event["time"] - silent
    step = max((sign["step"] for sign in signs if "step" in sign), default=None)
    if step is not None:
        record.steps.append((record.silent, int(step)))


_BEFORE_A_LAUNCH = ("longer", "grow", "move", "no_delete")
"""Kinds of events that a driver writes just before its launch."""

_NOTES = {
    "restore": _restore,
    "first_step": _first_step,
    "commit": _commit,
    "validation": _validation,
    "leave": _leave,
    "end": _end,
    "failure": _failure,
}

_NEEDED = {
    "room": ("workers", "least"),
    "start": ("time", "attempt", "world"),
    "restore": ("step",),
    "first_step": ("step", "seconds", "batch"),
    "commit": ("step", "seconds", "stall"),
    "validation": ("step", "seconds", "place", "waited"),
    "leave": ("step",),
    "end": (),
    "failure": ("last",),
}
"""What is read of an event, by kind, beside its time and attempt."""
