"""What a run's steps, saves and restarts take, as its events tell."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymat.analysis.goodput.ledger import make_ledger
from raymat.analysis.restart_phases import restarts
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
    start: float = 25.0
    """From the command, with machines, to the first step."""

    def step_on(self, workers: int) -> float:
        """Return the seconds of a step on so many workers: the batch is shared out, so that they take turns with its examples."""
        return self.step * self.world / workers

    @property
    def commit(self) -> float:
        """What a checkpoint costs training: its stall, and a share of its time beside training."""
        return self.stall + BESIDE * self.save


def measure(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the fields of RunCosts that a run's events tell, by name: medians, and the step of its largest world."""
    found: dict[str, float] = {}
    commits = [e for e in events if e.get("kind") == "commit"]
    _note(found, "stall", (e["stall"] for e in commits))
    _note(found, "save", (e["seconds"] for e in commits))
    again = restarts(events)
    _note(found, "detect", (r.detect for r in again if r.detect))
    _note(found, "restart", (r.total - (r.detect or 0.0) for r in again if r.total is not None))
    launches = [e["time"] for e in events if e.get("kind") == "launch"]
    firsts = [e["time"] for e in events if e.get("kind") == "first_step"]
    if launches and firsts and firsts[0] > launches[0]:
        found["start"] = firsts[0] - launches[0]
    return found | _step(events)


def _note(found: dict[str, float], name: str, values: Iterable[float]) -> None:
    values = [float(value) for value in values]
    if values:
        found[name] = statistics.median(values)


def _step(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return `step` and `world`, by the ledger: training and waits for data over the steps that were taken meanwhile."""
    worlds = {e["attempt"]: int(e["world"]) for e in events if e.get("kind") == "start"}
    spent: dict[int, float] = {}
    for span in make_ledger(events).spans:
        if span.cause in ("training", "data wait", "lost"):
            spent[span.attempt] = spent.get(span.attempt, 0.0) + span.end - span.begin
    pace: dict[int, list[float]] = {}
    for attempt, seconds in spent.items():
        reached = [
            e["step"]
            for e in events
            if e.get("attempt") == attempt and e.get("kind") in ("first_step", "commit", "leave")
        ]
        steps = max(reached, default=0) - min(reached, default=0)
        if steps > 0 and attempt in worlds:
            pace.setdefault(worlds[attempt], []).append(seconds / steps)
    if not pace:
        return {}
    world = max(pace)
    return {"step": statistics.median(pace[world]), "world": float(world)}
