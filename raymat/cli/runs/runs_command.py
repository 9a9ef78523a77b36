"""`raymat runs`: all runs of a storage, and where each stands."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from raymat.analysis.runs.summary import RunSummary
from raymat.analysis.runs.survey import survey_runs
from raymat.config.command_line import parse_options
from raymat.config.options import Url
from raymat.console import Display, age, cells, columns, count, cut, printable
from raymat.errors import RaymatError, StorageError
from raymat.train.run.run_file import RUN_FILE
from raymat.train.run.run_url import open_run_url

_HEAD = ("run", "state", "step", "goodput", "commit", "best")
_LEAST = 12
"""Columns that a run's name has at least."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the runs of a storage, those that were active last first: state, step, goodput, age of the newest commit, best
    validation.

    training: a driver renews the run's lease. stopped: its driver has left it. died: its driver has not renewed the
    lease for 20 s, which is watched where nothing else shows it. complete: it came to its end. Goodput is the share of
    the workers' time that was training which counts. Exit code: 0, or 2 if the storage cannot be read.
    """

    url: Url = "./runs"
    """The storage (--storage), any fsspec URL."""
    json: bool = False
    """Print JSON instead of a table; times in Unix seconds."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat runs STORAGE` and return the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat runs")
    found = survey_runs(options.url)
    if all(each.state == "no run" for each in found):
        _refuse_run(options.url)
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    else:
        print(table(found, time.time(), Display(sys.stdout).width))
    return 0


def _refuse_run(url: str) -> None:
    """Raise a StorageError if `url` is itself a run."""
    try:
        store = open_run_url(url)
    except RaymatError:  # no name of a run can be read from it
        return
    if store.try_read(RUN_FILE) is not None:
        raise StorageError(f"{store.url} is a run, no storage of runs: raymat watch shows it")


def table(found: Sequence[RunSummary], now: float, width: int | None = None) -> str:
    """Format runs for a terminal of `width` columns; None: names are not cut. Below it, what is wrong with odd ones."""
    rows = [_cells(each, now) for each in found]
    others = columns([_HEAD[1:], *(row[1:] for row in rows)]).split("\n")
    room = None if width is None else max(_LEAST, width - max(map(cells, others)) - 2)
    names = [_cut(name, room) for name in (_HEAD[0], *(row[0] for row in rows))]
    lines = [columns([*zip(names, others, strict=True)])]
    known = [each for each in found if each.state in ("training", "stopped", "died", "complete")]
    lines += [
        printable(f"{each.name} is {each.state}: {each.reason}")
        for each in found
        if each not in known
    ]
    return "\n".join([*lines, _totals(found)])


def _cells(each: RunSummary, now: float) -> tuple[str, ...]:
    steps = f"{each.step}/{each.steps or '?'}"
    best = "-" if each.best is None else f"{each.metric} {each.best:.4g} at {each.best_step}"
    return (
        printable(each.name),
        each.state,
        steps if each.stage else "-",
        "-" if each.goodput is None else f"{each.goodput:.1%}",
        "-" if each.committed is None else f"{age(now - each.committed)} ago",
        best,
    )


def _cut(text: str, room: int | None) -> str:
    return text if room is None or cells(text) <= room else f"{cut(text, room - 1)}…"


def _totals(found: Sequence[RunSummary]) -> str:
    states = sorted({each.state for each in found})
    parts = (f"{sum(each.state == state for each in found)} {state}" for state in states)
    return count(len(found), "folder") + (f": {', '.join(parts)}" if found else "")
