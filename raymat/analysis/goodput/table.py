"""The ledger of a run's time as a table for people."""

from __future__ import annotations

from raymat.analysis.goodput.ledger import Cause, Ledger
from raymat.console import columns

WORDS: dict[Cause, str] = {
    "training": "steps that count, and waiting for their data",
    "lost": "steps that were done again",
    "save stall": "training stood still to copy its state",
    "validation": "training stood still for a validation",
    "restore": "workers met, and read a checkpoint",
    "start-up": "Ray, workers and the first batch came up",
    "detection": "workers had failed, and nobody knew yet",
    "capacity": "no machine for a worker",
    "undriven": "no driver",
    "ending": "after the last step, until the driver let go",
}


def goodput_table(ledger: Ledger) -> str:
    """Return slot time by cause, the largest first, with its share, and the goodput; empty for an empty ledger."""
    total = ledger.slot_seconds
    if not total:
        return ""
    rows = [("time of all workers", "hours", "share", "")]
    for cause, seconds in sorted(ledger.by_cause.items(), key=lambda item: -item[1]):
        rows.append((cause, f"{seconds / 3600:.3f}", f"{seconds / total:.1%}", WORDS[cause]))
    return "\n".join([columns(rows), f"goodput {ledger.goodput:.1%} of {total / 3600:.2f} hours"])
