"""The restarts of a run: why its workers were started again, what that lost, and how long each phase took."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raymat.train.observability.event_kinds import tells

Event = Mapping[str, Any]


_NEEDED = {
    "launch": ("time", "attempt"),
    "start": ("time", "attempt", "world"),
    "restore": ("time", "attempt", "step"),
    "first_step": ("time", "attempt", "seconds", "batch"),
    "leave": ("time", "attempt", "step", "reason"),
    "failure": ("time", "attempt", "ranks"),
}
"""What is read of an event, by kind."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """One start of workers after others. Phases are in seconds; None where the events do not tell."""

    attempt: int
    world: int
    why: str
    at: float
    """When the previous workers last gave a sign of life, in Unix seconds."""
    resumed: int | None
    """The step that training resumed from; None where the workers did not come so far."""
    lost: int | None
    """Steps done again, at least: workers report their step every 2 s."""
    detect: float | None
    """From the last sign of life until the failure was noticed."""
    start: float | None
    """Until the new workers ran; None also if their driver is another: nobody knows for how long there was none."""
    restore: float | None
    """Until the checkpoint was restored."""
    batch: float | None
    """Until the first batch came."""
    step: float | None
    """Until the first step was done."""

    @property
    def total(self) -> float | None:
        """From the last sign of life to the first step."""
        phases = (self.detect, self.start, self.restore, self.batch, self.step)
        return None if None in phases else sum(p for p in phases if p is not None)


def restarts(events: Iterable[Event]) -> list[Restart]:
    """Find the restarts in a run's events, oldest first.

    What belongs together has the same attempt: clocks of several machines may disagree on the order.
    """
    told = [event for event in events if tells(event, _NEEDED)]
    attempts = {e["attempt"]: {"start": e} for e in told if e["kind"] == "start"}
    launched = {e["attempt"] for e in told if e["kind"] == "launch"}
    ends: dict[int, Event] = {}
    for event in told:
        kind, number = event["kind"], event["attempt"]
        if kind in ("failure", "leave"):
            ends.setdefault(number, event)  # later ones are of workers that died as they started
        elif number in attempts:
            attempts[number].setdefault(kind, event)
    numbers = sorted(attempts)
    return [
        _restart(attempts[number], ends.get(before), driven=before not in launched)
        for before, number in itertools.pairwise(numbers)
    ]


def _restart(attempt: Mapping[str, Event], end: Event | None, driven: bool) -> Restart:
    """Return a restart after `end`. `driven`: by the same driver as the attempt before."""
    start, restore, first = attempt["start"], attempt.get("restore"), attempt.get("first_step")
    resumed = int(restore["step"]) if restore else 0 if first else None
    restored = restore["time"] if restore else start["time"]
    silent, reached = _last_known(end)
    began = None if end is None else end["time"] - silent
    batch = first["time"] - first["seconds"] + first["batch"] if first else None
    return Restart(
        attempt=start["attempt"],
        world=start["world"],
        why=_why(end),
        at=start["time"] if began is None else began,
        resumed=resumed,
        lost=None if reached is None or resumed is None else max(0, reached - resumed),
        detect=None if end is None else silent,
        start=max(0.0, start["time"] - end["time"]) if end is not None and driven else None,
        restore=None if resumed is None else max(0.0, restored - start["time"]),
        batch=None if batch is None else max(0.0, batch - restored),
        step=None
        if first is None or batch is None
        else max(0.0, first["time"] - max(batch, restored)),
    )


def _last_known(end: Event | None) -> tuple[float, int | None]:
    """Return for how long the failed workers had been silent, and the highest step that they reported."""
    if end is None:
        return 0.0, None
    if end["kind"] == "leave":
        return 0.0, int(end["step"])
    signs = end.get("last", {}).values()
    silent = max([0.0, *(sign.get("silent", 0.0) for sign in signs)])  # by two machines' clocks
    return silent, max((sign["step"] for sign in signs if "step" in sign), default=None)


def _why(end: Event | None) -> str:
    if end is None:
        return "the driver ended"
    if end["kind"] == "leave":
        return str(end["reason"])
    return "; ".join(f"rank {rank}: {what}" for rank, what in end["ranks"].items())
