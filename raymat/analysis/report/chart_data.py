"""What the page's charts draw, as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymat.analysis.event_words import words_of
from raymat.analysis.goodput.ledger import CAUSES
from raymat.analysis.report.story import Story

MOST_SPANS, MOST_MARKS = 8000, 2000
PARTS = 2000
"""Of a run's time: routine that is shorter than one of them is left out."""
ROUTINE = ("data wait", "save stall", "validation")
"""Causes that come again and again."""
MARKED = {
    "failure": "bad",
    "machine_lost": "bad",
    "stuck": "bad",
    "save_failed": "bad",
    "nonfinite": "bad",
    "notice": "warn",
    "leave": "warn",
    "launch": "note",
    "longer": "note",
    "grow": "note",
    "move": "note",
    "plateau": "note",
    "end": "note",
}
"""Kinds of events that have a mark on the timeline, and how loud it is."""


def chart_data(stories: list[Story]) -> dict[str, Any]:
    """Return what the charts of these runs draw; JSON can hold it."""
    return {"causes": CAUSES, "runs": [_run(story) for story in stories]}


def _run(story: Story) -> dict[str, Any]:
    s, curves = story.summary, story.curves
    best = None if s.best is None else [s.best_step, s.best]
    train = {"steps": curves.steps, **curves.train, "lr": curves.rates}
    valid = {"steps": curves.valid_steps, "values": curves.valid, "best": best, "metric": s.metric}
    return {"name": s.name, "train": train, "valid": valid, "time": _timeline(story)}


def _timeline(story: Story) -> dict[str, Any]:
    """Return a run's time: spans (begin, end, cause, lowest and highest slot), marks, commits, validations, steps."""
    events = story.events
    marks = [e for e in events if e.get("kind") in MARKED][-MOST_MARKS:]
    return {
        "spans": _spans(story),
        "marks": [[_at(e), loudness(e), words_of(e)[:200]] for e in marks],
        "commits": _times(events, "commit"),
        "validations": _times(events, "validation"),
        "steps": list(_steps(story)),
    }


def loudness(event: Mapping[str, Any]) -> str:
    """Return how loud an event is: bad, warn, note, or empty. A launch is bad news where the driver before it had died."""
    kind = str(event.get("kind"))
    return "bad" if kind == "launch" and event.get("heard") else MARKED.get(kind, "")


def _times(events: Sequence[Any], kind: str) -> list[float]:
    """Return when events of this kind happened: some of them, evenly, where there are more than a screen can show."""
    times = [_at(event) for event in events if event.get("kind") == kind]
    return times[:: len(times) // PARTS + 1]


def _at(event: Any) -> float:
    return round(float(event["time"]), 2)


def _spans(story: Story) -> list[list[float]]:
    """Return the spans of the ledger as [begin, end, cause, lowest, highest slot, attempt], without what is too short to see.

    Neighbours that only what is left out parted are one.
    """
    spans = story.ledger.spans
    least = (spans[-1].end - spans[0].begin) / PARTS if spans else 0.0
    found: list[list[float]] = []
    newest: dict[tuple[int, ...], list[float]] = {}
    begin, low = None, 0
    for span in spans:
        low = low if span.begin == begin else 0  # of one moment the spans stand on each other
        begin, high = span.begin, low + span.slots
        what = (CAUSES.index(span.cause), low, high, span.attempt)
        before, low = newest.get(what), high
        if before is not None and span.begin - before[1] <= least:
            before[1] = round(span.end, 2)
        elif span.cause not in ROUTINE or span.end - span.begin > least:
            newest[what] = [round(span.begin, 2), round(span.end, 2), *what]
            found.append(newest[what])
    return found[-MOST_SPANS:]


def _steps(story: Story) -> Iterator[list[float | None]]:
    """Yield (time, completed steps); a step of None between attempts, where training went back."""
    total = sum(len(attempt.steps) for attempt in story.attempts)
    every = total // MOST_SPANS + 1
    for attempt in story.attempts:
        if not attempt.steps:
            continue
        points = sorted(attempt.steps)
        for number, (at, step) in enumerate(points):
            if number % every == 0 or number == len(points) - 1:
                yield [round(at, 2), step]
        yield [round(points[-1][0] + 0.01, 2), None]
