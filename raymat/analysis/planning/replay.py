"""A run replayed on a market of machines, in the time that it takes to reckon: by the rules that raymat's runs follow.

Workers that vanish without notice take the steps since the newest commit with them; with notice they commit first. Machines
that come back are taken in at once, after a commit. A restart costs what it costs, whatever the reason.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raymat.analysis.planning.costs import RunCosts
from raymat.analysis.planning.market import Change, Market, Timeline

GIVEN_UP = 200.0
"""Times the undisturbed time after which a run is taken never to end."""


@dataclass(frozen=True)
class Setting:
    """How a run is trained: `--workers low:high`, of which so many are machines on demand."""

    low: int
    high: int
    ondemand: int
    interval: int
    """Steps between checkpoints."""


@dataclass
class Outcome:
    """What a replayed run took, in seconds."""

    ends: bool = True
    wall: float = 0.0
    by_cause: Counter[str] = field(default_factory=Counter)
    """Slot-seconds: training, lost, save, start-up, detection, idle (too few machines to train), capacity (no machine)."""
    spot: float = 0.0
    """Machine-seconds of spot machines."""
    ondemand: float = 0.0

    @property
    def goodput(self) -> float:
        """Share of the time of machines that were there which was training that counts."""
        there = self.spot + self.ondemand
        return self.by_cause["training"] / there if there else 0.0


def replay(costs: RunCosts, steps: int, setting: Setting, market: Market, seed: int) -> Outcome:
    """Train `steps` steps on the market that this seed draws."""
    run = _Replay(costs, steps, setting, market, seed)
    limit = GIVEN_UP * (costs.start + steps * costs.step_on(setting.high))
    while run.left and run.found.ends:
        run.live()
        run.found.ends = run.found.ends and run.now < limit
    return run.found


class _Replay:
    def __init__(
        self, costs: RunCosts, steps: int, setting: Setting, market: Market, seed: int
    ) -> None:
        self._costs, self._setting = costs, setting
        self._times = Timeline(market.changes(setting.high - setting.ondemand, seed))
        self._next_start = costs.start
        self.left, self.now, self.found = steps, 0.0, Outcome()

    def live(self) -> None:
        """Go on to the next change of the machines, or to the run's end."""
        workers, change = self._machines(self._times.at(self.now)), self._times.after(self.now)
        if workers < self._setting.low:
            self._wait(workers, change)
            return
        ready = self.now + self._next_start
        if change is not None and change.at < ready:
            self._spend("start-up", change.at - self.now, workers)
            self._next_start = self._costs.restart
            return
        self._spend("start-up", self._next_start, workers)
        self._next_start = self._costs.restart
        self._train(workers, change)

    def _machines(self, change: Change) -> int:
        setting = self._setting
        return setting.ondemand + min(change.machines, setting.high - setting.ondemand)

    def _wait(self, workers: int, change: Change | None) -> None:
        if change is None:
            self.found.ends = False
        else:
            self._spend("idle", change.at - self.now, workers)

    def _train(self, workers: int, change: Change | None) -> None:
        costs, interval = self._costs, self._setting.interval
        step = costs.step_on(workers)
        cycle = interval * step + costs.commit
        saves = (self.left - 1) // interval
        needed = self.left * step + saves * costs.commit
        seconds = needed if change is None else change.at - self.now
        if seconds >= needed:
            self._spend("training", self.left * step, workers)
            self._spend("save", saves * costs.commit + costs.save, workers)
            self.left = 0
            return
        assert change is not None
        cycles = int(seconds // cycle)
        trained = cycles * interval + min(interval, int((seconds - cycles * cycle) / step))
        fewer = self._machines(change) < workers
        surprised = fewer and not change.noticed
        kept = int(max(0.0, seconds - costs.save) // cycle) * interval if surprised else trained
        self._spend("training", kept * step, workers)
        self._spend("lost", (trained - kept) * step, workers)
        self._spend("save", seconds - trained * step, workers)
        self.left -= kept
        self.now = change.at
        if surprised:
            self._spend("detection", costs.detect, workers)
        else:
            self._spend("save", costs.stall + costs.save, workers)

    def _spend(self, cause: str, seconds: float, workers: int) -> None:
        found, setting = self.found, self._setting
        found.by_cause[cause] += seconds * workers  # type: ignore[assignment]
        found.by_cause["capacity"] += seconds * (setting.high - workers)  # type: ignore[assignment]
        found.spot += seconds * (workers - setting.ondemand)
        found.ondemand += seconds * setting.ondemand
        found.wall += seconds
        self.now += seconds
