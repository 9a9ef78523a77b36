"""`raymat checkpoints`: the checkpoints that a run has in storage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raymat.analysis.checkpoint_table import CheckpointRow, CheckpointTable, tabulate
from raymat.config.command_line import parse_options
from raymat.config.options import Url
from raymat.console import age, columns, count, size
from raymat.train.run.run_url import open_run_url


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the checkpoints of a run, oldest first.

    Committed means that all files are there; for the newest 20 their sizes are also compared with the manifests. To
    check every byte, use raymat verify. Values are of the validations recorded in the newest checkpoint. Exit code: 0,
    or 2 if there is no such run.
    """

    url: Url
    """The run: STORAGE/NAME, any fsspec URL."""
    json: bool = False
    """Print JSON instead of a table; times in Unix seconds, ages in seconds."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat checkpoints URL` and return the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat checkpoints")
    table = tabulate(open_run_url(options.url))
    print(to_json(table) if options.json else text(table))
    return 0


def text(table: CheckpointTable) -> str:
    """Format a table for a terminal, with the totals as the last line."""
    if not table.rows:
        return f"{table.url} has no checkpoints yet"
    head = ("step", "attempt", "world", "bytes", "age", f"valid {table.metric}", "best", "state")
    return "\n".join([columns([head, *map(_cells, table.rows)]), totals(table)])


def to_json(table: CheckpointTable) -> str:
    """Format the same as one JSON object."""
    rows = [
        {table.metric if k == "value" else k: v for k, v in asdict(r).items()} for r in table.rows
    ]
    content = {
        "run": table.url,
        "checkpoints": rows,
        "metric": table.metric,
        "best": _step_and_value(table.best, table.metric),
        "best_validation": _step_and_value(table.best_validation, table.metric),
        "committed": len(table.rows) - table.torn - table.newer,
        "torn": table.torn,
        "newer": table.newer,
        "bytes": table.bytes,
    }
    return json.dumps(content, indent=2, allow_nan=False)


def totals(table: CheckpointTable) -> str:
    """Format the totals in one line."""
    number = len(table.rows)
    line = f"{count(number, 'checkpoint')}, {size(table.bytes)}: "
    line += f"{number - table.torn - table.newer} committed, {table.torn} torn"
    line += f", {table.newer} by a newer raymat" if table.newer else ""
    if table.best is not None:
        line += f"; best: {table.metric} {table.best[1]:.6g} at step {table.best[0]}"
    if table.best_validation is not None and table.best_validation != table.best:
        step, value = table.best_validation
        line += f"; no checkpoint of the best validation, {value:.6g} at step {step}"
    return line


def _step_and_value(best: tuple[int, float] | None, metric: str) -> dict[str, Any] | None:
    return None if best is None else {"step": best[0], metric: best[1]}


def _cells(row: CheckpointRow) -> tuple[str, ...]:
    return (
        str(row.step),
        str(row.attempt),
        "-" if row.world is None else str(row.world),
        size(row.bytes),
        "-" if row.age is None else age(row.age),
        "-" if row.value is None else f"{row.value:.6g}",
        "best" if row.best else "",
        row.reason or row.state,
    )
