"""What a user may have meant by a name that does not exist."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

MOST = 5
"""More candidates than these say nothing."""


def closest(
    name: str,
    known: Iterable[str],
    otherwise: str = "--help-all lists what there is",
    texts: Mapping[str, str] | None = None,
) -> str:
    """Return the end of a message about an unknown name: what was meant, or where to look.

    Meant are the names that have all of its words (`--lr`: `--lr-aspp`, ...), else the nearest in spelling, else those whose
    text has its words (`texts`, by name).
    """
    names = sorted(known)
    found = (
        _with_words(name, names)
        or difflib.get_close_matches(name, names, n=1)
        or _by_text(name, texts or {})
    )
    return f": did you mean {one_of(found)}?" if found else f": {otherwise}"


def one_of(names: Sequence[str]) -> str:
    """Join names as a choice: "a", "a or b", "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _with_words(name: str, names: Sequence[str]) -> list[str]:
    """Return the names of which some word begins with each word of `name`; none if there are too many."""
    asked = _words(name)
    found = [
        other
        for other in names
        if ("no" in asked) == other.startswith("--no-")
        and all(any(word.startswith(a) for word in _words(other)) for a in asked)
    ]
    return found if asked and min(map(len, asked)) > 1 and len(found) <= MOST else []


def _by_text(name: str, texts: Mapping[str, str]) -> list[str]:
    """Return the names whose texts have each word of `name`, or else one spelt like it."""
    for likeness in (1.0, 0.8):
        found = [
            other
            for other, text in texts.items()
            if all(
                difflib.get_close_matches(asked, _words(text), n=1, cutoff=likeness)
                for asked in _words(name)
            )
        ]
        if 0 < len(found) <= MOST:
            return found
    return []


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
