"""The setting that costs least, for each number of workers, and what it can be expected to take."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raymat.analysis.planning.costs import RunCosts
from raymat.analysis.planning.market import Market
from raymat.analysis.planning.replay import Outcome, Setting, replay
from raymat.config.prices import Prices
from raymat.train.run.commit_interval import LEAST_COST, MOST_SAVING, best_seconds

FEW = 24
"""Draws by which settings are compared; the chosen one gets as many as were asked for."""

ENOUGH = 3
"""Draws of which none comes to its end: then the others are not replayed."""


@dataclass(frozen=True)
class Spread:
    """A number that chance decides: what half of the draws stay below, between what nine of ten lie, and the mean of all.

    A few very bad draws can lift the mean above what nine of ten lie between; never the median.
    """

    median: float
    low: float
    high: float
    mean: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up draws."""
        ordered = sorted(values)
        last = len(ordered) - 1
        low, high = ordered[round(0.05 * last)], ordered[round(0.95 * last)]
        return cls(statistics.median(ordered), low, high, statistics.fmean(ordered))


@dataclass(frozen=True)
class Plan:
    """One number of workers, at its best setting."""

    setting: Setting
    hours: Spread
    goodput: Spread
    """Of the machines that are there."""
    capacity: float
    """Share of the slots' time without a machine."""
    cost: Spread | None
    """None without prices, or where machines on demand have none."""
    ends: float
    """Share of draws in which the run comes to its end."""


def make_plan(
    costs: RunCosts, steps: int, workers: int, market: Market, prices: Prices | None, draws: int
) -> Plan:
    """Find the setting that costs the least money, or time where there are no prices; say what to expect of it."""

    def judged(setting: Setting, count: int) -> list[Outcome]:
        found: list[Outcome] = []
        for seed in range(count):
            if seed == ENOUGH and not any(outcome.ends for outcome in found):
                break  # the others would take as long
            found.append(replay(costs, steps, setting, market, seed))
        return found

    def rank(setting: Setting) -> tuple[float, float, float]:
        found = judged(setting, min(FEW, draws))
        ended = statistics.fmean(o.ends for o in found)
        money = statistics.fmean(price(o, prices) for o in found) if prices else 0.0
        return -ended, money, statistics.fmean(o.wall for o in found)

    settings = list(_settings(costs, steps, workers, market, prices))
    best = min(settings, key=rank)
    found = judged(best, draws)
    slots = best.high * sum(o.wall for o in found)
    return Plan(
        best,
        Spread.of([o.wall / 3600 for o in found]),
        Spread.of([o.goodput for o in found]),
        sum(o.by_cause["capacity"] for o in found) / slots if slots else 0.0,
        Spread.of([price(o, prices) for o in found]) if prices else None,
        statistics.fmean(o.ends for o in found),
    )


def price(outcome: Outcome, prices: Prices) -> float:
    """Return what a run has cost."""
    return (outcome.spot * prices.spot + outcome.ondemand * (prices.ondemand or 0.0)) / 3600


def _settings(
    costs: RunCosts, steps: int, workers: int, market: Market, prices: Prices | None
) -> Iterator[Setting]:
    """Yield what may be best: few workers at least, half, or all; none on demand, half, or all where that has a price."""
    priced = prices is not None and prices.ondemand is not None
    lows = dict.fromkeys((1, -(-workers // 2), workers))
    owned = dict.fromkeys((0, workers // 2, workers) if priced else (0,))
    for low, ondemand in itertools.product(lows, owned):
        interval = best_interval(costs, steps, workers, ondemand, market)
        yield Setting(low, workers, ondemand, interval, auto=True)


def best_interval(costs: RunCosts, steps: int, workers: int, ondemand: int, market: Market) -> int:
    """Return the steps between checkpoints that `--checkpoint-interval auto` comes to where losses are as the market's."""
    hourly = market.unnoticed_per_hour(workers - ondemand) if workers > ondemand else 0.0
    if hourly <= 0:
        return steps
    seconds = best_seconds(max(LEAST_COST, costs.commit), 3600 / hourly)
    seconds = max(seconds, costs.save / MOST_SAVING)
    return min(steps, max(1, round(seconds / costs.step_on(workers))))
