"""`raymat diff`: compare two runs or checkpoints, tensor by tensor and layer by layer."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TextIO

from raymat.analysis.change_plot import draw_changes
from raymat.analysis.compare import DiffResult, TensorDifference, ValueDifference, diff
from raymat.analysis.layer_changes import LayerChange
from raymat.config.command_line import parse_options
from raymat.config.options import NOT_NEGATIVE, OptionGroup, Spelling
from raymat.console import columns
from raymat.errors import RaymatError
from raymat.json_lines import tell
from raymat.storage.output_files import check_output, write_output

EQUAL, DIFFERENT, FAILED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Compare two checkpoints tensor by tensor and value by value.

    A and B are STORAGE/NAME (the newest checkpoint that verifies), STORAGE/NAME@1200, STORAGE/NAME@best or
    STORAGE/NAME/checkpoints/step-..., any fsspec URL. If either is a weights file or ends in @ema, only weights are
    compared. For each part of the network, a table gives |B - A|, |B - A| / |A|, and the cosine between A and B as
    vectors over all tensors of the part. Exit code: 0 if equal to the bit, 1 if different, 2 if they could not be
    compared.
    """

    a: Annotated[str, Spelling("A", positional=True)]
    """The first checkpoint or weights."""
    b: Annotated[str, Spelling("B", positional=True)]
    """The second."""
    limit: Annotated[int, NOT_NEGATIVE] = 20
    """Maximum rows to show of tensors and of values, largest differences first."""
    picture: Annotated[str | None, Spelling("FILE.png")] = None
    """Draw the relative change of each layer's weights to this file, any fsspec URL."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat diff A B` and return the exit code; see `report`. Raises ConfigError for a wrong command line."""
    options = parse_options(Options, argv, "raymat diff")
    return report(options.a, options.b, limit=options.limit, picture=options.picture)


def report(
    a_url: str,
    b_url: str,
    *,
    limit: int = 20,
    picture: str | None = None,
    out: TextIO | None = None,
) -> int:
    """Print the comparison; returns 0 if both are equal to the bit, 1 if not, 2 if they could not be compared."""
    try:
        check_output("--picture", picture, ".png")
        result = diff(a_url, b_url)
        if picture is not None:
            drawn = draw_changes(result.layers, f"A  {result.a}", f"B  {result.b}")
            write_output("--picture", picture, drawn)
    except RaymatError as error:
        tell(f"raymat: error: cannot compare: {error.line}", "error")
        return FAILED
    print(text(result, limit), file=out or sys.stdout)
    return EQUAL if result.equal else DIFFERENT


def text(result: DiffResult, limit: int = 20) -> str:
    """Format both sides, the changes by part, up to `limit` differences of each kind, and the result as the last line."""
    lines = [f"A  {result.a}", f"B  {result.b}", *(f"note: {note}" for note in result.notes)]
    if result.different_tensors:
        lines += _part_table(result.parts)
    lines += _tensor_table(result.different_tensors, limit)
    lines += _value_table(result.different_values, limit)
    return "\n".join([*lines, summary(result)])


def summary(result: DiffResult) -> str:
    """Format the result in one line."""
    if result.equal:
        return f"equal to the bit: {result.tensors} tensors, {result.values} values"
    return (
        f"different: {len(result.different_tensors)} of {result.tensors} tensors, "
        f"{len(result.different_values)} of {result.values} values"
    )


def _part_table(parts: Sequence[LayerChange]) -> list[str]:
    rows = [("part", "tensors", "differ", "|B - A|", "/ |A|", "cosine", "only in A", "only in B")]
    for p in parts:
        cosine = "-" if math.isnan(p.cosine) else f"{p.cosine:.6f}"
        numbers = (f"{p.absolute:.3g}", f"{p.relative:.3g}", cosine)
        counts = (str(p.tensors), str(p.differ))
        rows.append((p.name, *counts, *numbers, str(p.only_a or "-"), str(p.only_b or "-")))
    return ["", *columns(rows).splitlines()]


def _tensor_table(differences: tuple[TensorDifference, ...], limit: int) -> list[str]:
    if not differences:
        return []
    rows = [("tensor", "", "elements", "max abs", "max rel")]
    for d in differences[:limit]:
        numbers = (str(d.elements), f"{d.absolute:.3g}", f"{d.relative:.3g}")
        rows.append((d.name, d.what, *(numbers if d.kind == "values" else (d.kind, "", ""))))
    return ["", *columns(rows).splitlines(), *_more(len(differences), limit, "tensors"), ""]


def _value_table(differences: tuple[ValueDifference, ...], limit: int) -> list[str]:
    if not differences:
        return []
    rows = [("value", "A", "B")] + [(d.name, _short(d.a), _short(d.b)) for d in differences[:limit]]
    return ["", *columns(rows).splitlines(), *_more(len(differences), limit, "values"), ""]


def _more(count: int, limit: int, what: str) -> list[str]:
    return [f"... and {count - limit} more {what}"] if count > limit else []


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
