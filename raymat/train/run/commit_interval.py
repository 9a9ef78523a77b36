"""How many steps to train between two checkpoints, if that is left to raymat: the number that loses least.

A checkpoint every W seconds costs its share of the time, and a loss without notice, one in every M seconds, costs half of W. The
sum is least near sqrt(2 * cost * M) (Young, "A First Order Approximation to the Optimum Checkpoint Interval", CACM 1974);
`best_seconds` is its higher-order form (Daly, "A Higher Order Estimate of the Optimum Checkpoint Interval for Restart Dumps",
FGCS 2006). What a restart costs does not move the optimum, and a loss with notice costs nothing: the workers commit before they
leave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

PRIOR_SECONDS = 8 * 3600.0
"""Seconds of a worker for one loss, before there is experience: two recordings of V100 spot nodes over 17 days (of the traces in
Mao et al., "Can't Be Late", NSDI 2024) have one node lost in 16.7 and in 1.8 node hours. It weighs as much as one observed loss."""
BESIDE = 0.05
"""Share of a save's time beside training that counts as its cost: it takes memory bandwidth, cores and network from the steps."""
LEAST_COST = 0.1
"""Seconds that a checkpoint counts for at least: requests are billed, disks wear, and the network has other users."""
MOST_SAVING = 0.25
"""Share of the time, at most, in which a checkpoint is on its way to storage."""
GROWTH = 4
"""How many times as long an interval may be as the one before: what the first steps show of the rest is little."""
CHANGE = 1.25
"""Factor from which on a new interval replaces the old one."""


@dataclass(frozen=True, kw_only=True)
class Experience:
    """What a run knows of its losses without notice, and how often it commits because of them."""

    worker_seconds: float = 0.0
    """Of all workers of all attempts, from their starts on."""
    losses: int = 0
    noticed: bool = False
    """Whether the attempt has committed because it was told to leave: its end is no loss."""
    interval: int = 20
    """Steps between checkpoints. The first is for the run to see what one costs."""

    def after_attempts(self, count: int) -> Experience:
        """Return what is known when `count` more attempts have ended without a checkpoint after this one."""
        unnoticed = max(0, count - self.noticed)
        return replace(self, losses=self.losses + unnoticed, noticed=False)

    def mean_seconds(self, workers: int) -> float:
        """Return the seconds of training between two losses, to be expected of so many workers."""
        return (PRIOR_SECONDS + self.worker_seconds) / (1 + self.losses) / workers

    def store(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    @classmethod
    def read(cls, stored: Mapping[str, Any] | None) -> Experience:
        """Read what `store` returned; None: of a state of an earlier version."""
        if stored is None:
            return cls()
        return cls(
            worker_seconds=float(stored["worker_seconds"]),
            losses=int(stored["losses"]),
            noticed=bool(stored["noticed"]),
            interval=int(stored["interval"]),
        )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Measured seconds."""

    step: float
    stall: float
    """That training stands still for a checkpoint."""
    save: float
    """From a snapshot until it is durable."""


def best_seconds(cost: float, mean: float) -> float:
    """Return the seconds of training between checkpoints of `cost` seconds with a loss every `mean` seconds (Daly's 37)."""
    if cost >= 2 * mean:
        return mean
    ratio = cost / (2 * mean)
    return math.sqrt(2 * cost * mean) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - cost


def best_steps(costs: Costs, experience: Experience, workers: int) -> int:
    """Return the steps between two checkpoints that lose least, at least 1."""
    cost = max(LEAST_COST, costs.stall + BESIDE * costs.save)
    seconds = max(best_seconds(cost, experience.mean_seconds(workers)), costs.save / MOST_SAVING)
    return max(1, round(seconds / max(costs.step, 1e-6)))


def next_interval(now: int, best: int) -> int:
    """Return the interval that follows `now`: towards the `best`, unless it is nearly there."""
    if now / CHANGE < best < now * CHANGE:
        return now
    return min(best, GROWTH * now)
