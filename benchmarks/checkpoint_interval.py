"""What `--checkpoint-interval auto` loses beside fixed intervals, in simulated runs on machines that vanish.

    python benchmarks/checkpoint_interval.py [--runs 100] [--seed 0]

Each run is another: seconds a step, stall and save, workers, how often workers are lost without notice and how regularly (a
Weibull shape), how long a restart takes, all drawn from ranges that the table's head says. Each of them is run to its end
with the interval that raymat's own rule chooses, step by step as it would, and with fixed ones, each time under the same
losses. Lost is what the run takes longer than its bare steps; steps after the newest durable checkpoint are done again, and
a save beside training takes its share from the steps. Prints in how many runs `auto` is within 2% of the best fixed interval
of that run (in time to the end), its worst, and what each fixed interval loses on average.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from raymat.console import columns
from raymat.train.run.commit_interval import (
    Costs,
    Experience,
    best_steps,
    next_interval,
)

FIXED = (1, 5, 20, 100, 500, 2000)
WITHIN = 0.02
HOURS = 24
"""Of bare steps in a run."""
AT_MOST = 20.0
"""Times its bare steps after which a run is given up."""


@dataclass(frozen=True)
class Conditions:
    """What a simulated run meets."""

    step: float
    stall: float
    save: float
    beside: float
    """Share of a save's seconds that the steps lose to it."""
    workers: int
    mean: float
    """Seconds between two losses of the run."""
    shape: float
    """Of the Weibull distribution of what lies between: 1 forgets, below 1 comes in bursts."""
    restart: float
    seed: int

    @classmethod
    def draw(cls, seed: int) -> Conditions:
        """Draw a run's conditions."""
        rng = np.random.default_rng([seed, 1])

        def between(low: float, high: float) -> float:
            return float(np.exp(rng.uniform(np.log(low), np.log(high))))

        workers = int(rng.choice([1, 2, 4, 8, 16, 64]))
        return cls(
            step=between(0.05, 2),
            stall=between(0.005, 2),
            save=between(0.5, 30),
            beside=float(rng.uniform(0, 0.1)),
            workers=workers,
            mean=max(600.0, between(2, 48) * 3600 / workers),
            shape=float(rng.uniform(0.6, 1.2)),
            restart=between(10, 120),
            seed=seed,
        )

    def losses(self) -> Iterator[float]:
        """Yield the seconds of training from each start to the loss that ends it."""
        rng = np.random.default_rng([self.seed, 2])
        scale = self.mean / math.gamma(1 + 1 / self.shape)
        while True:
            yield float(scale * rng.weibull(self.shape))


class Fixed:
    """A fixed interval."""

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def committed(self, experience: Experience) -> None:
        """Stay the same."""


class Auto:
    """raymat's rule, fed as a run feeds it."""

    def __init__(self, conditions: Conditions) -> None:
        self.interval, self._conditions = Experience().interval, conditions

    def committed(self, experience: Experience) -> None:
        """Choose the next interval."""
        at = self._conditions
        costs = Costs(step=at.step, stall=at.stall, save=at.save)
        self.interval = next_interval(self.interval, best_steps(costs, experience, at.workers))


def simulate(at: Conditions, rule: Fixed | Auto) -> float:
    """Run to the end; return the seconds, over those of the bare steps."""
    bare = HOURS * 3600.0
    run = _Run(at, rule, total=round(bare / at.step))
    for life in at.losses():
        run.live(life)
        if run.done == run.total or run.seconds > AT_MOST * bare:
            return run.seconds / bare
        run.losses += 1
        run.seconds += at.restart
    raise AssertionError("losses never end")


@dataclass
class _Run:
    """A run with what it has been through."""

    at: Conditions
    rule: Fixed | Auto
    total: int
    """Steps."""
    done: int = 0
    """Steps that the next attempt goes on from."""
    seconds: float = 0.0
    trained: float = 0.0
    """Seconds of the attempts, without the restarts between them."""
    losses: int = 0

    def live(self, life: float) -> None:
        """Train for `life` seconds or to the run's end."""
        at, clock, step = self.at, 0.0, self.done
        saved, durable_at = step, 0.0  # the newest save, and when it is durable
        while step < self.total:
            steps = min(self.rule.interval, self.total - step)
            clock, step = clock + steps * at.step, step + steps
            if clock >= life:
                break
            if (
                clock < durable_at
            ):  # storage takes one at a time: a save that is due meanwhile is left out
                continue
            clock += at.stall + at.beside * at.save
            self.done, saved, durable_at = saved, step, clock + at.save
            seconds = at.workers * (self.trained + clock)
            self.rule.committed(Experience(worker_seconds=seconds, losses=self.losses))
        ended = step >= self.total and clock < life
        if ended or durable_at <= life:
            self.done = self.total if ended else saved
        self.seconds += min(clock, life)
        self.trained += min(clock, life)


def main() -> None:
    """Simulate, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rules: dict[str, Callable[[Conditions], Fixed | Auto]] = {"auto": Auto}
    rules |= {str(n): lambda _, n=n: Fixed(n) for n in FIXED}
    takes: dict[str, list[float]] = {name: [] for name in rules}
    for seed in range(given.seed, given.seed + given.runs):
        at = Conditions.draw(seed)
        for name, rule in rules.items():
            takes[name].append(simulate(at, rule(at)))
    best = [min(times) for times in zip(*(takes[str(n)] for n in FIXED), strict=True)]
    over = [auto / least - 1 for auto, least in zip(takes["auto"], best, strict=True)]
    within = sum(o <= WITHIN for o in over)
    rows = [("interval", "lost on average", "worst")]
    for name, times in takes.items():
        mean = statistics.fmean(t - 1 for t in times)
        rows.append((name, f"{100 * mean:.2f}%", f"{100 * (max(times) - 1):.1f}%"))
    print(columns(rows))
    print(
        f"auto is within {100 * WITHIN:.0f}% of the best fixed interval of each run in {within} of {given.runs}; "
        f"its time beside that one's: median {100 * statistics.median(over):+.2f}%, worst {100 * max(over):+.2f}%"
    )


if __name__ == "__main__":
    main()
