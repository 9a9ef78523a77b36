"""The page of the documents that shows what happened: docs/hosts.md below its mark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

MARK = "<!-- written by make hosts: what follows -->"
HEADING = """
## What happened

The times are those of one run on two cores, which other work shared."""
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
TELLING = re.compile(
    r"joining|workers failed|machine |notice|leave|resumed|restart|is complete|goodput"
)
"""Lines of a job's log that tell the story."""
PROGRESS = re.compile(r"base \d+/\d+ ")


def telling(lines: Sequence[str]) -> list[str]:
    """Return the telling lines of a log, each once."""
    plain = (COLOURS.sub("", line).rstrip()[:200] for line in lines)
    return [
        *dict.fromkeys(line for line in plain if TELLING.search(line) and not PROGRESS.match(line))
    ]


def write_transcript(page: Path, parts: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Put parts, each a sentence and what was said, behind the page's mark. Raises ValueError if it has none."""
    text = page.read_text(encoding="utf-8")
    before = text[: text.index(MARK) + len(MARK)]
    blocks = [
        "\n".join(["", sentence, "", *(f"    {line}".rstrip() for line in lines)])
        for sentence, lines in parts
    ]
    page.write_text("\n".join([before, HEADING, *blocks]) + "\n", encoding="utf-8")
