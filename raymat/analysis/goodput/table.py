"""The ledger of a run's time as a table for people."""

from __future__ import annotations

from raymat.analysis.goodput.ledger import Cause, Ledger
from raymat.analysis.goodput.money import bill
from raymat.config.prices import Prices
from raymat.console import columns

WORDS: dict[Cause, str] = {
    "training": "steps that count",
    "data wait": "steps that count waited for data: more decoding cores, or raymat prepare",
    "lost": "steps that were done again",
    "save stall": "training stood still to copy its state",
    "validation": "training stood still for a validation",
    "restore": "workers met, and read a checkpoint",
    "start-up": "Ray, workers and the first batch came up",
    "detection": "workers had failed, and nobody knew yet",
    "idle": "a machine without a worker: it waits to be taken in, or for others",
    "capacity": "no machine for a worker",
    "undriven": "no driver",
    "ending": "after the last step, until the driver let go",
}


def goodput_table(ledger: Ledger, prices: Prices | None = None) -> str:
    """Return slot time by cause, the largest first, with its share, and the goodput; empty for an empty ledger.

    `prices`: with what it has cost.
    """
    total = ledger.slot_seconds
    if not total:
        return ""
    paid = None if prices is None else bill(ledger, prices)
    rows = [("time of all workers", "hours", "share", *(["cost"] if paid else []), "")]
    for cause, seconds in sorted(ledger.by_cause.items(), key=lambda item: -item[1]):
        cost = [f"{paid.by_cause[cause]:.2f}" if cause in paid.by_cause else "-"] if paid else []
        rows.append((cause, f"{seconds / 3600:.3f}", f"{seconds / total:.1%}", *cost, WORDS[cause]))
    summary = f"goodput {ledger.goodput:.1%} of {total / 3600:.2f} hours"
    return "\n".join([columns(rows), summary, *([paid.words] if paid else [])])
