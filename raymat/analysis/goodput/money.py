"""What a run's time has cost, by cause, and what the same training would have cost on demand."""

from __future__ import annotations

from dataclasses import dataclass

from raymat.analysis.goodput.ledger import CAUSES, Cause, Ledger
from raymat.config.prices import Prices

WITHOUT_MACHINE: frozenset[Cause] = frozenset({"capacity", "undriven"})
"""Causes of slots for which nothing is paid: their machine is gone, or their cluster may end it while nobody drives."""
PRODUCTIVE: frozenset[Cause] = frozenset({"training", "data wait", "save stall", "validation"})
"""Causes that a run has on machines that nobody takes away, too."""


@dataclass(frozen=True)
class Bill:
    """A run's money, in the currency of its prices."""

    by_cause: dict[Cause, float]
    """At the price of spot machines."""
    undisturbed: float | None
    """What the run would have cost on demand if nothing had happened; None if that price is not known."""

    @property
    def total(self) -> float:
        """All that was paid."""
        return sum(self.by_cause.values())

    @property
    def lost(self) -> float:
        """What was paid for time in which an undisturbed run trains, validates or saves, and this one did not."""
        return sum(cost for cause, cost in self.by_cause.items() if cause not in PRODUCTIVE)

    @property
    def words(self) -> str:
        """The bill in a sentence or two."""
        told = f"cost {self.total:.2f}, {self.lost:.2f} of it for time that an undisturbed run does not have"
        if self.undisturbed is None:
            return told
        saved = self.undisturbed - self.total
        share = f" ({abs(saved) / self.undisturbed:.0%})" if self.undisturbed else ""
        words = f"saved {saved:.2f}" if saved >= 0 else f"{-saved:.2f} less"
        return f"{told}; undisturbed on demand {self.undisturbed:.2f}: {words}{share}"


def bill(ledger: Ledger, prices: Prices) -> Bill:
    """Price the time of a ledger: every worker is taken for a spot machine."""
    hours = {cause: seconds / 3600 for cause, seconds in ledger.by_cause.items()}
    paid = {c: hours[c] * prices.spot for c in CAUSES if c in hours and c not in WITHOUT_MACHINE}
    needed = sum(hours.get(cause, 0.0) for cause in PRODUCTIVE)
    return Bill(paid, None if prices.ondemand is None else needed * prices.ondemand)
