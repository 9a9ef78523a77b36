"""The ledger of a run's time: from its first launch to its end, every second of every worker slot has exactly one cause.

It is made of the run's events alone, so that the whole past of any run can be read from its storage at any time. A slot is
room for one worker; a run has as many as it may have workers. Time passes through these causes:

    launch ── start-up ── start ── restore ── start-up ── first step ── training ... ── last sign ── detection ─┐
       ^                    ^                                                                                   │
       │                    └──────────── start-up ───────────── failure noticed, or workers left ──────────────┘
       └── undriven ── a driver died, stopped, failed, or completed the run

Of the training time, waits for data, stalls of saves and validations are told apart. Events tell of waits now and then, and
how long they were in all: they are put at the end of the time of which each event tells. What was trained after the state
that a later attempt went on from is lost: it was done again.
"""

from __future__ import annotations

import bisect
import math
import operator
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from raymat.analysis.goodput.attempts import AttemptRecord, Event, Launch, Room, records

Cause = Literal[
    "training",
    "data wait",
    "lost",
    "save stall",
    "validation",
    "restore",
    "start-up",
    "detection",
    "idle",
    "capacity",
    "undriven",
    "ending",
]
"""training: of steps that count, without their waits for data. lost: of steps that were done again. idle: a slot with a
machine, but without a worker: it waits to be taken in, or for as many others as the run needs. capacity: a slot without a
machine. ending: from the last step until the driver let go."""

CAUSES: tuple[Cause, ...] = get_args(Cause)


class Span(NamedTuple):
    """A stretch of time in which `slots` worker slots had one cause. Times in Unix seconds."""

    begin: float
    end: float
    cause: Cause
    slots: int
    attempt: int
    """The attempt that it belongs to; 0 before the first."""

    @property
    def slot_seconds(self) -> float:
        """Its length, times its slots."""
        return (self.end - self.begin) * self.slots


@dataclass(frozen=True)
class Ledger:
    """The spans of a run, by their beginning. Spans of one moment together have all slots of the run."""

    spans: tuple[Span, ...]

    @property
    def by_cause(self) -> dict[Cause, float]:
        """Slot-seconds of every cause that took any."""
        total: Counter[Cause] = Counter()
        for span in self.spans:
            total[span.cause] += span.slot_seconds  # type: ignore[assignment]
        return {cause: total[cause] for cause in CAUSES if total[cause]}

    @property
    def slot_seconds(self) -> float:
        """Sum of all spans."""
        return sum(span.slot_seconds for span in self.spans)

    @property
    def goodput(self) -> float:
        """Share of the time that was training which counts; 1 for a run without any time."""
        total = self.slot_seconds
        return self.by_cause.get("training", 0.0) / total if total else 1.0


def make_ledger(events: Iterable[Event], until: float | None = None) -> Ledger:
    """Account for a run's time, from its events, oldest first.

    Args:
        until: Unix seconds at which the account ends; None: with the newest event. A run that trains right now has all of
            its training counted as kept.
    """
    events = list(events)
    launches, attempts, rooms = records(events)
    times = [event["time"] for event in events if event.get("time") is not None]
    if not times or not (launches or attempts):
        return Ledger(())
    end = max(times) if until is None else until
    marks = sorted(_marks(launches, attempts), key=lambda mark: (mark.at, mark.attempt))
    world = {attempt.number: attempt.world for attempt in attempts}
    most = _Slots(launches, attempts)
    spans: list[Span] = []
    for mark, span in _spans(marks, end):
        slots = most.at(span.begin)
        for part, room in _by_room(span, rooms):
            workers = min(slots, world.get(span.attempt, slots))
            spans += _fill_slots(part, workers, slots, room, mark.starting)
    return Ledger(tuple(spans))


class _Mark(NamedTuple):
    """From `at` on the run's time has this cause."""

    at: float
    cause: Cause
    attempt: int
    starting: bool = False
    """Whether no attempt is under way."""


def _marks(launches: Sequence[Launch], attempts: Sequence[AttemptRecord]) -> Iterator[_Mark]:
    """Yield where the cause changes, attempt by attempt.

    An attempt is over at the latest when the next one starts, or nobody drives: what its workers write later, or with a clock
    that is ahead, changes no cause.
    """
    for launch in launches:
        if launch.left < launch.at:
            yield _Mark(launch.left, "undriven", launch.before)
        yield _Mark(launch.at, "start-up", launch.before, starting=True)
    kept: int | None = None  # the lowest step that a later attempt went on from
    following = [*(attempt.started for attempt in attempts), math.inf][1:]
    for attempt, next_start in zip(reversed(attempts), reversed(following), strict=True):
        left = (launch.left for launch in launches if launch.before >= attempt.number)
        until = min(next_start, *left, math.inf)
        yield from (mark for mark in _marks_of(attempt, kept, until) if mark.at < until)
        if attempt.resumed is not None:
            kept = attempt.resumed if kept is None else min(kept, attempt.resumed)


def _marks_of(attempt: AttemptRecord, kept: int | None, until: float) -> Iterator[_Mark]:
    """Yield the marks of one attempt, which is over by `until`."""
    number, silent, over = attempt.number, attempt.silent, attempt.over
    yield _Mark(attempt.started, "restore", number)
    if attempt.restored is not None:
        yield _Mark(attempt.restored, "start-up", number)
    if attempt.trained is not None:
        end = until if silent is None else silent
        lost_from = _lost_from(attempt, kept)
        for at, cause in _training(attempt, end):
            yield _Mark(at, cause if lost_from is None or at < lost_from else "lost", number)
        if lost_from is not None and lost_from < end:
            yield _Mark(max(lost_from, attempt.trained), "lost", number)
    if silent is not None and over is not None:
        yield _Mark(silent, "detection", number)
        if attempt.complete:
            yield _Mark(over, "ending", number)
        else:
            yield _Mark(over, "start-up", number, starting=True)


def _training(attempt: AttemptRecord, end: float) -> Iterator[tuple[float, Cause]]:
    """Yield the changes between training, waits, stalls and validations, from the first step until training is over."""
    for begin, _, cause in _with_waits(_stretches(attempt, end), attempt.waits):
        yield begin, cause


_Stretch = tuple[float, float, Cause]
"""From when to when there was one cause."""


def _stretches(attempt: AttemptRecord, end: float) -> Iterator[_Stretch]:
    """Yield when the attempt trained, was stalled, and validated; they follow each other without a gap."""
    assert attempt.trained is not None
    begin = attempt.trained
    stood: list[tuple[float, float, Cause]] = [
        *((at, at + seconds, "save stall") for at, seconds in attempt.stalls),
        *((at - seconds, at, "validation") for at, seconds in attempt.validations),
    ]
    for first, last, cause in sorted(stood):
        first, last = max(first, begin), min(last, end)
        if first < last:
            yield begin, first, "training"
            yield first, last, cause
            begin = last
    yield begin, end, "training"


def _with_waits(
    stretches: Iterable[_Stretch], waits: Sequence[tuple[float, float]]
) -> Iterator[_Stretch]:
    """Turn training into waits for data: before each time of `waits`, as much as has come to be known since the last."""
    coming, known = deque(stretches), 0.0
    for at, seconds in waits:
        before = list(_take_until(coming, at))
        yield from reversed(list(_wait_at_the_end(before, seconds - known)))
        known = max(known, seconds)
    yield from coming


def _take_until(coming: deque[_Stretch], at: float) -> Iterator[_Stretch]:
    while coming and coming[0][0] < at:
        begin, end, cause = coming.popleft()
        if end > at:
            coming.appendleft((at, end, cause))
        yield begin, min(end, at), cause


def _wait_at_the_end(stretches: Sequence[_Stretch], seconds: float) -> Iterator[_Stretch]:
    """Yield them from the last to the first, the last `seconds` of training as a wait."""
    for begin, end, cause in reversed(stretches):
        wait = max(0.0, min(seconds, end - begin)) if cause == "training" else 0.0
        seconds -= wait
        if wait:
            yield end - wait, end, "data wait"
        if begin < end - wait:
            yield begin, end - wait, cause


def _lost_from(attempt: AttemptRecord, kept: int | None) -> float | None:
    """Return when what the attempt trained began to be lost; None if all of it counts. `kept`: the last step that does."""
    if kept is None or attempt.trained is None:
        return None
    if attempt.resumed is None or kept <= attempt.resumed:
        return attempt.trained
    if kept in attempt.saved:
        return attempt.saved[kept]
    known = sorted(attempt.steps, key=lambda point: point[1])
    place = bisect.bisect_left([step for _, step in known], kept)
    if place == len(known):
        return None
    if place == 0:
        return attempt.trained
    (before, low), (after, high) = known[place - 1], known[place]
    return before + (after - before) * (kept - low) / max(1, high - low)


def _spans(marks: Sequence[_Mark], end: float) -> Iterator[tuple[_Mark, Span]]:
    """Yield the spans between marks, with one slot each, and from the last mark to `end`; each with the mark that it has."""
    for mark, until in zip(marks, [*(m.at for m in marks[1:]), end], strict=True):
        until = min(until, end)
        if mark.at < until:
            yield mark, Span(mark.at, until, mark.cause, 1, mark.attempt)


_when = operator.attrgetter("at")


def _by_room(span: Span, rooms: Sequence[Room]) -> Iterator[tuple[Span, Room]]:
    """Part a span where the cluster's room for workers changes; yield each part with the room that there is."""
    first = bisect.bisect_right(rooms, span.begin, key=_when)
    last = bisect.bisect_left(rooms, span.end, first, key=_when)
    if first == last and first:
        yield span, rooms[first - 1]
        return
    known = [rooms[first - 1] if first else Room(span.begin), *rooms[first:last]]
    begins = [span.begin, *(room.at for room in known[1:])]
    for begin, end, room in zip(begins, [*begins[1:], span.end], known, strict=True):
        if begin < end:
            yield span._replace(begin=begin, end=end), room


def _fill_slots(span: Span, workers: int, slots: int, room: Room, starting: bool) -> Iterator[Span]:
    """Give a span all slots of the run: those without one of its workers are idle, or without a machine.

    Args:
        workers: that were there last.
        starting: workers start now, as many as there is room for, if that is known and enough.
    """
    machines = workers
    if span.cause == "undriven":
        workers = machines = slots
    elif room.workers is not None:
        machines = min(slots, room.workers)
        if starting:
            workers = 0 if room.lacks else machines
    idle = max(0, machines - workers)
    if workers:
        yield span._replace(slots=workers)
    if idle:
        yield span._replace(cause="idle", slots=idle)
    if slots > workers + idle:
        yield span._replace(cause="capacity", slots=slots - workers - idle)


class _Slots:
    """How many slots a run had: as many as its newest launch asked for, and at least its workers since."""

    def __init__(self, launches: Sequence[Launch], attempts: Sequence[AttemptRecord]) -> None:
        changes = [
            *((launch.at, launch.before, launch.slots, 0) for launch in launches),
            *((attempt.started, attempt.number, 0, attempt.world) for attempt in attempts),
        ]
        asked, self._times, self._slots = 1, list[float](), list[int]()
        for at, _, slots, workers in sorted(changes):
            asked = slots or asked
            self._times.append(at)
            self._slots.append(max(asked, workers))

    def at(self, when: float) -> int:
        """Return how many there were."""
        return self._slots[max(0, bisect.bisect_right(self._times, when) - 1)]
