"""What a system made of its machines, by the log of its steps."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from goodput_systems.machines import Loss


@dataclass(frozen=True)
class StepEnd:
    """A step that has ended."""

    time: float
    step: int
    world: int


def read_steps(path: Path) -> list[StepEnd]:
    """Return the log."""
    return [StepEnd(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def pace(steps: Sequence[StepEnd]) -> dict[int, float]:
    """Return the median seconds of a step by the number of workers."""
    found: dict[int, list[float]] = {}
    for before, after in itertools.pairwise(steps):
        if after.step == before.step + 1 and after.world == before.world:
            found.setdefault(after.world, []).append(after.time - before.time)
    return {world: statistics.median(seconds) for world, seconds in found.items()}


@dataclass(frozen=True)
class Outcome:
    """Seconds, unless it says otherwise."""

    wall: float
    """From the first step to the last."""
    ideal: float
    """That the steps take on the machines that there were, if machines came and went at no cost."""
    again: int
    """Steps that were done again."""
    recoveries: tuple[float, ...]
    """By loss of a machine: until training was a step further than it had been; without those from which none was left."""

    @property
    def lost(self) -> float:
        """What the losses cost."""
        return self.wall - self.ideal

    @classmethod
    def of(
        cls,
        steps: Sequence[StepEnd],
        losses: Sequence[Loss],
        history: Sequence[tuple[float, int]],
        seconds: dict[int, float],
    ) -> Outcome:
        """`history`: how many machines there were from when on (Unix seconds). `seconds`: of a step, by workers."""
        begin, end = steps[0].time, steps[-1].time
        return cls(
            wall=end - begin,
            ideal=_ideal(begin, steps[-1].step - 1, history, seconds),
            again=len(steps) - len({step.step for step in steps}),
            recoveries=tuple(_recoveries(steps, losses)),
        )


def _ideal(
    begin: float, steps: float, history: Sequence[tuple[float, int]], seconds: dict[int, float]
) -> float:
    """Return the time in which the steps are done on the machines that there are, and the time without any."""
    now, left = begin, float(steps)
    untils = [when for when, _ in history[1:]] + [float("inf")]
    for (_, machines), until in zip(history, untils, strict=True):
        if until <= now:
            continue
        if machines:
            step = _step_seconds(seconds, machines)
            if left * step <= until - now:
                return now + left * step - begin
            left -= (until - now) / step
        now = until
    raise ValueError("the job ended, though no machine was there")


def _step_seconds(seconds: dict[int, float], machines: int) -> float:
    """Return the seconds of a step on so many machines; where it never ran there, as if they took turns with its examples."""
    if machines in seconds:
        return seconds[machines]
    nearest = min(seconds, key=lambda world: abs(world - machines))
    return seconds[nearest] * nearest / machines


def _recoveries(steps: Sequence[StepEnd], losses: Sequence[Loss]) -> list[float]:
    found = []
    for loss, until in zip(losses, [*(loss.at for loss in losses[1:]), float("inf")], strict=True):
        before = [step.step for step in steps if step.time <= loss.at]
        back = [s.time for s in steps if s.time > loss.at and s.step > max(before, default=0)]
        if loss.machines and back and back[0] < until:
            found.append(back[0] - loss.at)
    return found
