"""HTML that cannot be injected into: whatever is not made here as markup is text, and escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_LEAVES = {"img", "input", "meta"}


class Html(str):
    """Markup: the only text that goes into a page as it is."""


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """Return an element. Children that are no Html are escaped, attributes always; `class_` is written class."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{words}>" + ("" if name in _LEAVES else f"{join(children)}</{name}>"))


def join(children: Iterable[str]) -> Html:
    """Return children one after another; those that are no Html are escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(str(c)) for c in children))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Return a table, in a box that scrolls sideways where it is too narrow; empty without rows."""
    body = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    if not body:
        return Html("")
    top = tag("tr", *(tag("th", cell) for cell in head))
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="wide")


def section(title: str, *children: str) -> Html:
    """Return a part of a page under its title; empty if all its children are."""
    return tag("section", tag("h3", title), *children) if any(children) else Html("")


def folded(title: str, *children: str) -> Html:
    """Return what is folded away under its title until somebody opens it; empty if all its children are."""
    return tag("details", tag("summary", title), *children) if any(children) else Html("")
