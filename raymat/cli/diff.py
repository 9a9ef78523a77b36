"""Whether two runs or checkpoints hold the same state, to the bit, and if not, where they differ.

Compared are every tensor and every value beside the tensors, except those whose name says that they
tell a time, an attempt or a place (`is_circumstance`): an undisturbed run and one that was killed
ten times elsewhere are equal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TextIO

from raymat.analysis.change_plot import draw_changes
from raymat.analysis.compare import diff
from raymat.config.command_line import parse_options
from raymat.config.options import NOT_NEGATIVE, OptionGroup, Spelling
from raymat.errors import RaymatError
from raymat.storage.output_files import check_output, write_output

EQUAL, DIFFERENT, FAILED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Compare two checkpoints tensor by tensor and value by value.

    A and B are STORAGE/NAME (the newest checkpoint that verifies), STORAGE/NAME@1200, STORAGE/NAME@best or
    STORAGE/NAME/checkpoints/step-..., any fsspec URL. Where one of them is a weights file or ends in @ema, the
    weights alone are compared. The table by part gives |B - A|, that over |A|, and the cosine between A and B as
    vectors, over all tensors of the part. Exit code: 0 if equal to the bit, 1 if different, 2 if they could not be
    compared.
    """

    a: Annotated[str, Spelling("A", positional=True)]
    """One side."""
    b: Annotated[str, Spelling("B", positional=True)]
    """The other."""
    limit: Annotated[int, NOT_NEGATIVE] = 20
    """So many tensors and so many values are shown, those that differ most first."""
    picture: Annotated[str | None, Spelling("FILE.png")] = None
    """Draw the relative change of each layer's weights into this file, any fsspec URL."""


def main(argv: Sequence[str]) -> int:
    """`raymat diff A B`: see `report`. Raises ConfigError for a wrong command line."""
    options = parse_options(Options, argv, "raymat diff")
    return report(options.a, options.b, limit=options.limit, picture=options.picture)


def report(
    a_url: str,
    b_url: str,
    *,
    limit: Annotated[int, NOT_NEGATIVE] = 20,
    picture: str | None = None,
    out: TextIO | None = None,
) -> int:
    """Print the comparison; 0 if both are equal to the bit, 1 if not, 2 if they could not be compared."""
    try:
        check_output("--picture", picture, ".png")
        result = diff(a_url, b_url)
        if picture is not None:
            drawn = draw_changes(result.layers, f"A  {result.a}", f"B  {result.b}")
            write_output("--picture", picture, drawn)
    except RaymatError as error:
        print(f"raymat: error: cannot compare: {error.line}", file=sys.stderr)
        return FAILED
    print(result.text(limit), file=out or sys.stdout)
    return EQUAL if result.equal else DIFFERENT
