"""The numbers of an evaluation, as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raymat.analysis.evaluation import METRICS, Candidate, Measured, Values, mean
from raymat.analysis.examples import Examples
from raymat.console import columns, count

FORMAT = 1
"""Of the JSON file."""
TITLES = {
    "loss": "loss",
    "sad": "SAD",
    "mse": "MSE",
    "grad": "Grad",
    "conn": "Conn",
    "fgr_mse": "fgr MSE",
}
UNITS = "SAD, Grad and Conn in thousands, MSE in thousandths"


@dataclass(frozen=True)
class SeenExample:
    """A measured example: its numbers, and the values of each row."""

    number: int
    pair: int
    background: int
    name: str
    values: list[Values]

    @classmethod
    def of(cls, measured: Measured, examples: Examples) -> SeenExample:
        """Keep the numbers of a measured example, without its pictures."""
        one = measured.example
        name = examples.name_of(one)
        return cls(one.number, one.pair, one.background, name, measured.values)


def rows_of(candidates: Sequence[Candidate], ensemble: bool) -> list[tuple[str, dict[str, Any]]]:
    """Return label and facts of each candidate, and of their ensemble if there is one."""
    rows = [(one.label, one.facts) for one in candidates]
    if ensemble:
        rows.append((f"mean of the {len(candidates)} predictions", {"step": None}))
    return rows


@dataclass(frozen=True)
class ScoreReport:
    """The values of all examples for all rows."""

    rows: list[tuple[str, dict[str, Any]]]
    """Label and facts of each."""
    seen: list[SeenExample]
    settings: dict[str, Any]

    def means(self, row: int) -> Values:
        """Return the row's means over all examples that have a value."""
        return {m: mean([one.values[row][m] for one in self.seen]) for m in METRICS}

    def best(self, metric: str) -> int:
        """Return the row with the lowest mean, the first of equals; rows without a mean come last."""
        found = [self.means(row)[metric] for row in range(len(self.rows))]
        return min(range(len(found)), key=lambda row: (found[row] is None, found[row] or 0.0, row))

    @property
    def text(self) -> str:
        """The table, with what it was measured on below."""
        means = [self.means(row) for row in range(len(self.rows))]
        several = len(means) > 1
        steps = ["-" if facts.get("step") is None else str(facts["step"]) for _, facts in self.rows]
        shown = [["what", *(label for label, _ in self.rows)], _right(["step", *steps])]
        for metric, title in TITLES.items():
            cells = _cells([values[metric] for values in means], star=several)
            shown.append(_right([f"{title} " if several else title, *cells]))
        s = self.settings
        return (
            f"{columns(list(zip(*shown, strict=True)))}\n"
            f"{count(len(self.seen), 'example')} of {s['split']}/ of {s['data']} at {s['resolution']} x {s['resolution']} "
            f"(seed {s['seed']}), {s['device']}, {s['precision']}; {UNITS}{'; * is the least' if several else ''}"
        )

    def to_json(self) -> bytes:
        """Encode everything for programs; numbers that are not finite become null."""
        rows = [
            {
                "what": label,
                **facts,
                "means": self.means(row),
                "examples": [_finite(one.values[row]) for one in self.seen],
            }
            for row, (label, facts) in enumerate(self.rows)
        ]
        examples = [
            {"number": s.number, "pair": s.pair, "background": s.background, "name": s.name}
            for s in self.seen
        ]
        found = {"format": FORMAT, "units": UNITS, **self.settings}
        found |= {"examples": examples, "rows": rows}
        return (json.dumps(found, indent=1, allow_nan=False) + "\n").encode()

    def to_csv(self) -> bytes:
        """Encode a line for each row and example; a row's examples are followed by its means, whose number is `mean`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["what", "number", "name", *METRICS])
        for row, (label, _) in enumerate(self.rows):
            for s in self.seen:
                values = _finite(s.values[row])
                writer.writerow([label, s.number, s.name, *(values[m] for m in METRICS)])
            means = self.means(row)
            writer.writerow([label, "mean", "", *(means[m] for m in METRICS)])
        return text.getvalue().encode(errors="backslashreplace")


def _finite(values: Values) -> Values:
    return {metric: mean([value]) for metric, value in values.items()}


def _cells(values: Sequence[float | None], star: bool) -> list[str]:
    """Format the values; with `star`, the lowest is marked."""
    least = min((value for value in values if value is not None), default=None)
    mark = {True: "*", False: " "} if star else {True: "", False: ""}
    return [_text(value) + mark[value is not None and value == least] for value in values]


def _text(value: float | None) -> str:
    """Format with four significant digits or more."""
    if value is None:
        return "-"
    decimals = next((d for bound, d in ((1, 4), (10, 3), (100, 2)) if value < bound), 1)
    return f"{value:.{decimals}f}"


def _right(cells: Sequence[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) for cell in cells]
