"""What a run's steps, saves and restarts take, as its events tell."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymat.analysis.goodput.attempts import records
from raymat.analysis.goodput.ledger import make_ledger
from raymat.analysis.restart_phases import Restart, restarts
from raymat.distributed.joining import ROOM_SECONDS
from raymat.train.observability.event_kinds import tells
from raymat.train.run.commit_interval import BESIDE


@dataclass(frozen=True, kw_only=True)
class RunCosts:
    """Seconds that parts of a run take. The defaults are what raymat took on one small machine."""

    step: float
    """A step, with its wait for data, on `world` workers."""
    world: int = 1
    stall: float = 0.02
    """For which training stands still to copy its state for a checkpoint."""
    save: float = 5.0
    """From that copy until the checkpoint is committed."""
    detect: float = 2.0
    """From the death of a worker until that is known."""
    restart: float = 15.0
    """From then, or from leaving with a notice, to the first step of the next attempt."""
    join: float = ROOM_SECONDS + 2
    """From when a machine is there until the workers leave to take it in."""
    grow: float = 15.0
    """From then to the first step of the next attempt: the workers on that machine have read nothing yet."""
    start: float = 25.0
    """From the command, with machines, to the first step."""
    paces: Mapping[int, float] = field(default_factory=dict)
    """Seconds of a step by number of workers, where they were measured."""

    def step_on(self, workers: int) -> float:
        """Return the seconds of a step on so many workers.

        Where none were measured: the batch is shared out, so that they take turns with its examples.
        """
        return self.paces.get(workers, self.step * self.world / workers)

    @property
    def commit(self) -> float:
        """What a checkpoint costs training: its stall, and a share of its time beside training."""
        return self.stall + BESIDE * self.save


def measure(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of RunCosts that a run's events tell, by name: medians, and the step of its largest world."""
    found: dict[str, Any] = {}
    commits = _of_kind(events, "commit", "stall", "seconds")
    _note(found, "stall", (e["stall"] for e in commits))
    _note(found, "save", (e["seconds"] for e in commits))
    launches = [e["time"] for e in _of_kind(events, "launch")]
    firsts = [e["time"] for e in _of_kind(events, "first_step")]
    if firsts and (before := [at for at in launches if at < firsts[0]]):
        found["start"] = firsts[0] - before[-1]
    return found | _restarts(events) | _step(events)


def _note(found: dict[str, Any], name: str, values: Iterable[float]) -> None:
    values = [float(value) for value in values]
    if values:
        found[name] = statistics.median(values)


def _restarts(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what losses and growth cost, by restarts that did not wait for machines."""
    found: dict[str, float] = {}
    lost: list[Restart] = []
    grown: list[Restart] = []
    worlds = {e["attempt"]: int(e["world"]) for e in _of_kind(events, "start", "attempt", "world")}
    counts = _of_kind(events, "room", "workers", "least")
    waits = [e["time"] for e in counts if e["workers"] < e["least"]]
    for restart in restarts(events):
        before = max(attempt for attempt in worlds if attempt < restart.attempt)
        if restart.total is None or any(0 <= at - restart.at <= restart.total for at in waits):
            continue
        (grown if restart.world > worlds[before] else lost).append(restart)
    _note(found, "detect", (r.detect for r in lost if r.detect))
    _note(found, "restart", (r.total - (r.detect or 0.0) for r in lost if r.total is not None))
    _note(found, "grow", (r.total for r in grown if r.total is not None))
    _note(found, "join", _joins(events, grown))
    return found


def _joins(events: Sequence[Mapping[str, Any]], grown: Sequence[Restart]) -> Iterator[float]:
    """Yield for how long the machines for which the workers restarted had been there when these were asked to leave."""
    for restart in grown:
        asked = [e["time"] for e in _of_kind(events, "notice") if e["time"] <= restart.at]
        came = [e["time"] for e in _of_kind(events, "room") if asked and e["time"] <= asked[-1]]
        if came:
            yield asked[-1] - came[-1]


def _of_kind(
    events: Iterable[Mapping[str, Any]], kind: str, *needed: str
) -> list[Mapping[str, Any]]:
    """Return those events of a kind that have a time and what is needed: other versions may write less."""
    wanted = {kind: ("time", *needed)}
    return [event for event in events if tells(event, wanted)]


def _step(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `paces`, and `step` and `world` of the largest.

    By the ledger: training and waits for data, over the steps that were taken meanwhile.
    """
    _, attempts, _ = records(events)
    worlds = {attempt.number: attempt.world for attempt in attempts}
    seconds, steps = Counter[int](), Counter[int]()
    for span in make_ledger(events).spans:
        if span.cause in ("training", "data wait", "lost"):
            seconds[worlds[span.attempt]] += span.end - span.begin  # type: ignore[assignment]
    for attempt in attempts:
        reached = [step for _, step in attempt.steps]
        steps[attempt.world] += max(reached, default=0) - min(reached, default=0)
    counts = {world: n for world, n in sorted(steps.items()) if n and seconds[world]}
    paces = {world: seconds[world] / n for world, n in counts.items()}
    if not paces:
        return {}
    world = max(paces)
    return {"step": paces[world], "world": world, "paces": paces}
