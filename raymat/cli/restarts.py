"""`raymat restarts`: why a run's workers were started anew, what that lost, and where the time went."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raymat.cli.runs import open_run
from raymat.console import Url, columns, count, parse_options
from raymat.errors import StorageError
from raymat.train.observability.events import read_events

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the restarts of a run, oldest first: steps lost, and seconds by phase.

    Detect: from the last sign of life (given every 2 s) of a worker that failed until that was
    noticed. Start: until the new workers were there. Restore: until the checkpoint was read. Batch:
    until the first batch came. Step: until the first step was done. Exit code: 0, or 2 if there is
    no such run.
    """

    url: Url
    """The run: STORAGE/NAME, any fsspec URL."""
    json: bool = False
    """Print JSON instead of a table; times in seconds."""


@dataclass(frozen=True, kw_only=True)
class Restart:
    """One start of workers after others; seconds and steps are None where the events do not tell."""

    attempt: int
    world: int
    why: str
    at: float
    """Unix seconds at which the workers before were last known to work."""
    resumed: int
    """The step that training went on from."""
    lost: int | None
    """Steps done again, at least: workers tell what they do every 2 s."""
    detect: float | None
    start: float | None
    restore: float | None
    batch: float | None
    step: float | None

    @property
    def total(self) -> float | None:
        """From the last sign of life to the first step."""
        phases = (self.detect, self.start, self.restore, self.batch, self.step)
        return None if None in phases else sum(p for p in phases if p is not None)


def main(argv: Sequence[str]) -> int:
    """`raymat restarts URL`; returns the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat restarts")
    store = open_run(options.url)
    events = read_events(store)
    if not events:
        raise StorageError(f"there is no run with events at {store.url}")
    found = restarts(events)
    print(_json(found) if options.json else _text(found))
    return 0


def restarts(events: Iterable[Event]) -> list[Restart]:
    """The restarts that a run's events, oldest first, tell of."""
    found: list[Restart] = []
    end: Event | None = None
    attempts: dict[int, dict[str, Event]] = {}
    ends: dict[int, Event] = {}
    for event in events:
        kind = event["kind"]
        if kind in ("failure", "leave"):
            end = event
        elif kind == "start":
            attempts[event["attempt"]] = {"start": event}
            if end is not None:
                ends[event["attempt"]] = end
            end = None
        elif kind in ("restore", "first_step") and event["attempt"] in attempts:
            attempts[event["attempt"]].setdefault(kind, event)
    for number in sorted(attempts)[1:]:
        found.append(_restart(attempts[number], ends.get(number)))
    return found


def _restart(attempt: Mapping[str, Event], end: Event | None) -> Restart:
    start, restore, first = attempt["start"], attempt.get("restore"), attempt.get("first_step")
    resumed = int(restore["step"]) if restore else 0
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
        lost=None if reached is None else max(0, reached - resumed),
        detect=None if end is None else silent,
        start=None if end is None else start["time"] - end["time"],
        restore=restored - start["time"],
        batch=None if batch is None else max(0.0, batch - restored),
        step=None if first is None or batch is None else first["time"] - max(batch, restored),
    )


def _last_known(end: Event | None) -> tuple[float, int | None]:
    """How long the workers that failed had been silent, and the highest step that was told of."""
    if end is None:
        return 0.0, None
    if end["kind"] == "leave":
        return 0.0, int(end["step"])
    signs = end.get("last", {}).values()
    return max((s["silent"] for s in signs), default=0.0), max(
        (s["step"] for s in signs), default=None
    )


def _why(end: Event | None) -> str:
    if end is None:
        return "the driver ended"
    if end["kind"] == "leave":
        return str(end["reason"])
    return "; ".join(f"rank {rank}: {what}" for rank, what in end["ranks"].items())


def _text(found: Sequence[Restart]) -> str:
    head = [
        "attempt",
        "workers",
        "resumed",
        "lost",
        "detect",
        "start",
        "restore",
        "batch",
        "step",
        "total",
        "why",
    ]
    rows = [
        (
            str(r.attempt),
            str(r.world),
            str(r.resumed),
            "-" if r.lost is None else str(r.lost),
            *(
                "-" if seconds is None else f"{seconds:.1f}"
                for seconds in (r.detect, r.start, r.restore, r.batch, r.step, r.total)
            ),
            r.why[:80],
        )
        for r in found
    ]
    total = count(len(found), "restart")
    return "\n".join([columns([tuple(head), *rows]), total]) if found else total


def _json(found: Sequence[Restart]) -> str:
    return json.dumps([asdict(r) | {"total": r.total} for r in found], indent=2)
