"""The lines by which raymat says that something is wrong, read from its source; `…` stands for what a line fills in."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from typing import NamedTuple

from raymat import errors
from tests.support.paths import ROOT

PACKAGE = ROOT / "raymat"
HOLE = "…"
ERRORS = {name for name in vars(errors) if name.endswith("Error")} | {"MetadataError"}
TELLERS = {"require": 1, "Check": 1, "matches": 1, "_refuse": 0, "_give_up": 0}
"""Functions that end in an error, and which of their arguments is its text."""
WARNINGS = {"say", "_say", "warn", "warning", "Line", "line"}
"""What prints a line for people that ends nothing."""
COMPOSED = {
    "analysis/selection.py": ("best", "_newest_before"),
    "config/prices.py": ("_EXPECTED",),
    "config/run_names.py": ("name_problem",),
    "data/dataset/discovery.py": ("paired",),
    "data/dataset/growth.py": ("_differences",),
    "data/dataset/layout_hints.py": ("*",),
    "data/dataset/roots.py": ("find",),
    "inference/background_fit.py": ("_misfit",),
    "inference/video_footage.py": ("_too_short",),
    "model/pretrained.py": ("*",),
    "storage/faults.py": ("_ADVICE",),
    "storage/urls.py": (
        "url_problem",
        "_advice",
        "_cut_off",
        "root_problem",
        "_local_problem",
        "_folder_problem",
    ),
}
"""Functions and tables whose texts are made into errors elsewhere, by file; `*` are all functions of a file."""


class Message(NamedTuple):
    """A line, and where it is made."""

    text: str
    file: str
    warning: bool

    @property
    def letters(self) -> int:
        """The number of letters that are always the same."""
        return sum(letter.isalpha() for letter in self.text)


@functools.cache
def messages() -> tuple[Message, ...]:
    """Every line, by file; those without words of their own are made of others."""
    found: dict[Message, None] = {}
    for module in sorted(PACKAGE.rglob("*.py")):
        file = str(module.relative_to(PACKAGE))
        tree = ast.parse(module.read_text(encoding="utf-8"))
        found |= dict.fromkeys(Message(_clean(text), file, w) for text, w in _told(tree, file))
    return tuple(found)


def _clean(text: str) -> str:
    return " ".join(text.split())


def _told(tree: ast.Module, file: str) -> Iterator[tuple[str, bool]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _name(node.func)
            place = TELLERS.get(name, 0)
            known = name in ERRORS | {*TELLERS} | WARNINGS
            if known and len(node.args) > place:
                warning = name in WARNINGS
                texts = (*_texts(node.args[place]),)
                yield from ((text, warning) for text in texts if not warning or text != HOLE)
    for owner in ast.walk(tree):
        if _name(owner) in COMPOSED.get(file, ()) or (
            COMPOSED.get(file) == ("*",) and isinstance(owner, ast.FunctionDef)
        ):
            yield from ((text, False) for text in _made_by(owner))


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.AnnAssign):
        return _name(node.target)
    if isinstance(node, ast.Assign):
        return _name(node.targets[0])
    return str(
        getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", "")
    )


def _made_by(owner: ast.AST) -> Iterator[str]:
    """What a function returns or yields, or binds to a name, and the values of a table, where it has words."""
    for node in ast.walk(owner):
        given = getattr(node, "value", None)
        if (
            isinstance(node, (ast.Return, ast.Yield, ast.Assign, ast.YieldFrom))
            and given is not None
        ):
            words = (text.replace(HOLE, "").split() for text in _texts(given))
            yield from (
                text for text, own in zip(_texts(given), words, strict=True) if len(own) > 1
            )
        if isinstance(node, ast.Dict) and not isinstance(owner, ast.FunctionDef):
            yield from (text for value in node.values for text in _texts(value) if " " in text)


def _texts(node: ast.AST) -> Iterator[str]:
    """The texts that an expression may be."""
    if isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))
    elif isinstance(node, ast.GeneratorExp):
        yield from _texts(node.elt)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _texts(value)
    else:
        yield _text(node)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        parts = node.value.replace("{}", HOLE)
        for percent in ("%s", "%.0f", "%d", "%r"):
            parts = parts.replace(percent, HOLE)
        return parts
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(v) if isinstance(v, ast.Constant) else HOLE for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return HOLE
