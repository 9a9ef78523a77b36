"""A run replayed on a market of machines, in the time that it takes to reckon: by the rules that raymat's runs follow.

Workers that vanish without notice take the steps since the newest commit with them; with notice they commit first. Machines
that come are taken in after a while, if that pays, and after a commit. Of machines of a kind those that came last go first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raymat.analysis.planning.costs import RunCosts
from raymat.analysis.planning.market import Market, Timeline
from raymat.distributed.joining import worth_after

GIVEN_UP = 200.0
"""Times the undisturbed time after which a run is taken never to end."""


@dataclass(frozen=True)
class Setting:
    """How a run is trained: `--workers low:high`, of which so many are machines on demand."""

    low: int
    high: int
    ondemand: int
    interval: int
    """Steps between checkpoints, when all workers are there."""
    auto: bool = False
    """Whether fewer workers, whose steps take longer, commit after fewer of them: `--checkpoint-interval auto`."""


@dataclass
class Outcome:
    """What a replayed run took, in seconds."""

    ends: bool = True
    wall: float = 0.0
    by_cause: Counter[str] = field(default_factory=Counter)
    """Slot-seconds: training, lost, save, start-up, detection, idle (a machine that waits to be taken in, or for others), capacity
    (no machine)."""
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


@dataclass(frozen=True)
class _Stretch:
    """How long the workers that there are train on."""

    end: float
    fewer: bool = False
    noticed: bool = False
    """Whether those that go said so."""


class _Replay:
    def __init__(
        self, costs: RunCosts, steps: int, setting: Setting, market: Market, seed: int
    ) -> None:
        self._costs, self._setting = costs, setting
        self._times = Timeline(market.changes(setting.high - setting.ondemand, seed))
        self._next_start = costs.start
        self.left, self.now, self.found = steps, 0.0, Outcome()

    def live(self) -> None:
        """Go on to the next restart of the workers, to the next machines where there are too few, or to the run's end."""
        workers, began = self._machines(self.now), self.now
        if workers < self._setting.low:
            self._wait()
        elif self._start(workers):
            self._train(workers, began)

    def _machines(self, when: float) -> int:
        setting = self._setting
        spot = self._times.at(when).machines
        return setting.ondemand + min(spot, setting.high - setting.ondemand)

    def _wait(self) -> None:
        change = self._times.after(self.now)
        if change is None:
            self.found.ends = False
        else:
            self._spend("idle", change.at - self.now, 0)

    def _start(self, workers: int) -> bool:
        """Start workers; return whether their machines were there until they were ready."""
        ready, self._next_start = self.now + self._next_start, self._costs.restart
        gone = self._stretch(workers, ready)
        self._spend("start-up", (ready if gone is None else gone.end) - self.now, workers)
        return gone is None

    def _stretch(self, workers: int, until: float) -> _Stretch | None:
        """Return when the first of these workers' machines goes; None if that is not before `until`."""
        change = self._times.after(self.now)
        while change is not None and change.at < until:
            if self._machines(change.at) < workers:
                return _Stretch(change.at, fewer=True, noticed=change.noticed)
            change = self._times.after(change.at)
        return None

    def _growth(self, workers: int, began: float, until: float) -> _Stretch | None:
        """Return when the workers leave for machines that have come by then; None if that is not before `until`."""
        came = self.now
        while came < until:
            change = self._times.after(came)
            more = self._machines(came)
            if more > workers:
                worth = worth_after(workers, more, self._costs.restart)
                leave = max(came + self._costs.join, began + worth)
                if leave < (until if change is None else min(until, change.at)):
                    return _Stretch(leave)
            if change is None:
                break
            came = change.at
        return None

    def _train(self, workers: int, began: float) -> None:
        costs, interval = self._costs, self._setting.interval
        step = costs.step_on(workers)
        if self._setting.auto:
            interval = max(1, round(interval * costs.step_on(self._setting.high) / step))
        saves = (self.left - 1) // interval
        needed = self.left * step + saves * costs.commit
        end = self.now + needed
        gone = self._stretch(workers, end)
        stretch = self._growth(workers, began, end if gone is None else gone.end) or gone
        if stretch is None:
            self._spend("training", self.left * step, workers)
            self._spend("save", saves * costs.commit + costs.save, workers)
            self.left = 0
            return
        seconds = stretch.end - self.now
        cycle = interval * step + costs.commit
        cycles = int(seconds // cycle)
        trained = cycles * interval + min(interval, int((seconds - cycles * cycle) / step))
        surprised = stretch.fewer and not stretch.noticed
        kept = int(max(0.0, seconds - costs.save) // cycle) * interval if surprised else trained
        self._spend("training", kept * step, workers)
        self._spend("lost", (trained - kept) * step, workers)
        self._spend("save", seconds - trained * step, workers)
        self.left, self.now = self.left - kept, stretch.end
        self._next_start = costs.restart if stretch.fewer else costs.grow
        if surprised:
            self._spend("detection", costs.detect, workers)
        else:
            self._spend("save", costs.stall + costs.save, workers)

    def _spend(self, cause: str, seconds: float, workers: int) -> None:
        """Let time pass, in which so many workers do this. Machines beside them are idle."""
        found, setting, end = self.found, self._setting, self.now + seconds
        found.by_cause[cause] += seconds * workers  # type: ignore[assignment]
        found.ondemand += seconds * setting.ondemand
        found.wall += seconds
        while self.now < end:
            change = self._times.after(self.now)
            until = end if change is None else min(end, change.at)
            there = max(workers, self._machines(self.now))
            found.by_cause["idle"] += (until - self.now) * (there - workers)  # type: ignore[assignment]
            found.by_cause["capacity"] += (until - self.now) * (setting.high - there)  # type: ignore[assignment]
            found.spot += (until - self.now) * (there - setting.ondemand)
            self.now = until
