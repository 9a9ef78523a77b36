"""`raymat restarts`: why a run's workers were started again, what that lost, and where the time went."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raymat.analysis.goodput.ledger import make_ledger
from raymat.analysis.goodput.table import goodput_table
from raymat.analysis.restart_phases import Restart, restarts
from raymat.config.command_line import parse_options
from raymat.config.options import Url
from raymat.config.prices import Prices
from raymat.console import columns, count
from raymat.errors import ConfigError
from raymat.train.observability.attempt_events import MachineLost
from raymat.train.observability.event_kinds import parse_event
from raymat.train.run.run_url import open_run_url, read_run_events

_PHASES = ("detect", "start", "restore", "batch", "step", "total")


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the restarts of a run, oldest first: steps lost, and seconds by phase; then machines lost, and where the time went.

    Detect: from the last sign of life of a failed worker (one every 2 s) until the failure was noticed. Start: until
    the new workers ran. Restore: until the checkpoint was restored. Batch: until the first batch came. Step: until the
    first step was done. Goodput is the share of the time, from the first launch to the newest event, that was training
    which counts. Exit code: 0, or 2 if there is no such run.
    """

    url: Url
    """The run: STORAGE/NAME, any fsspec URL."""
    json: bool = False
    """Print the restarts as JSON instead of tables; times in seconds."""
    price: Prices | None = None
    """What a worker costs in an hour, in any currency, as spot=0.52,ondemand=1.62 or a .yaml file of both: the time is also
    told in money."""

    def __post_init__(self) -> None:
        if self.json and self.price is not None:
            raise ConfigError("--price is told in the tables alone: leave it or --json out")


def main(argv: Sequence[str]) -> int:
    """Run `raymat restarts URL` and return the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat restarts")
    store = open_run_url(options.url)
    events = read_run_events(store)
    found = restarts(events)
    print(_json(found) if options.json else _text(found, events, options.price))
    return 0


def _text(found: Sequence[Restart], events: Sequence[dict[str, Any]], prices: Prices | None) -> str:
    rows: list[tuple[str, ...]] = [("attempt", "workers", "resumed", "lost", *_PHASES, "why")]
    for r in found:
        phases = (getattr(r, phase) for phase in _PHASES)
        seconds = ("-" if each is None else f"{each:.1f}" for each in phases)
        lost = "-" if r.lost is None else str(r.lost)
        resumed = "-" if r.resumed is None else str(r.resumed)
        rows.append((str(r.attempt), str(r.world), resumed, lost, *seconds, r.why[:80]))
    total = count(len(found), "restart")
    listed = "\n".join([columns(rows), total]) if found else total
    parts = (listed, _machines(events), goodput_table(make_ledger(events), prices))
    return "\n\n".join(part for part in parts if part)


def _machines(events: Sequence[dict[str, Any]]) -> str:
    """Return the machines that were lost, also those whose loss restarted nothing; empty if there are none."""
    lost = [e for e in map(parse_event, events) if isinstance(e, MachineLost)]
    rows: list[tuple[str, ...]] = [("machine", "node", "ranks", "still", "why")]
    for each in lost:
        ranks = ", ".join(map(str, each.ranks)) or "-"
        rows.append((each.ip, each.node[:8], ranks, f"{each.still:.1f}", each.reason[:80]))
    return "\n".join([columns(rows), f"{count(len(lost), 'machine')} lost"]) if lost else ""


def _json(found: Sequence[Restart]) -> str:
    return json.dumps([asdict(r) | {"total": r.total} for r in found], indent=2)
