"""Pages made of the code: `python -m tests.support.reference` writes docs/commands.md and docs/api.md anew."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import raymat
from raymat.cli.main import COMMANDS
from raymat.config.command_line import _metavar
from raymat.config.options import Option
from raymat.config.run import STAGE_DEFAULTS
from tests.support.command_lines import Declared, declared
from tests.support.paths import ROOT

MADE = "Made from the code by `python -m tests.support.reference`; a test holds it up to date."


def commands_page() -> str:
    """docs/commands.md."""
    parts = [
        f"# Commands and their flags\n\n{MADE} `raymat COMMAND --help` prints the same.\n\n{_overview()}"
    ]
    parts += ["## raymat base, raymat refine\n", *_stages()]
    for name in COMMANDS:
        if name not in ("base", "refine"):
            parts += [*_command(declared(*(["cluster", "check"] if name == "cluster" else [name])))]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _overview() -> str:
    rows = (
        f"| [`raymat {name}`](#{_anchor(name)}) | {command.help} |"
        for name, command in COMMANDS.items()
    )
    return "\n".join(["| command | |", "| --- | --- |", *rows])


def _anchor(name: str) -> str:
    if name in ("base", "refine"):
        return "raymat-base-raymat-refine"
    return "raymat-cluster-check" if name == "cluster" else f"raymat-{name}"


def _stages() -> Iterator[str]:
    found = declared("base")
    yield (
        "The same `--storage` and `--name` are the same run. `python jobs/base.py` and `python jobs/refine.py` take the same "
        "flags. Each is also a key of a YAML file (`--config`), with `-` or `_`. The last column says what becomes of it when "
        "a run is resumed."
    )
    for heading, options in found.groups.items():
        owner = next(iter(options.values())).owner
        title = f"### {heading.capitalize()}" if heading else "### The run"
        about = f"\n\n{inspect.getdoc(owner).splitlines()[0]}" if heading else ""  # type: ignore[union-attr]
        rows = ["| flag | default | | on resume |", "| --- | --- | --- | --- |"]
        rows += [
            f"| {_flag(o, found)} | {_stage_default(n, o)} | {_cell(o.help)} | "
            f"{o.on_resume.value.split(';')[0].split(':')[0] if o.on_resume else ''} |"
            for n, o in options.items()
        ]
        yield f"{title}{about}\n\n" + "\n".join(rows)


def _stage_default(name: str, option: Option) -> str:
    ours, theirs = _default(option), STAGE_DEFAULTS["refine"].get(name)
    return f"{ours}, refine `{theirs}`" if theirs is not None else ours


def _command(found: Declared) -> Iterator[str]:
    yield f"## {found.prog}"
    yield (
        re.sub(r"\n(?!\n)", " ", found.description.replace("\n\n", "\n\n"))
        .strip()
        .replace("\n ", "\n")
    )
    if found.prog == "raymat check":
        yield "Beside these, all flags of `raymat base` and `raymat refine`."
    own = found.groups[""]
    if found.prog == "raymat check":
        own = {n: o for n, o in own.items() if n not in declared("base").groups[""]}
    if own:
        rows = [f"| {_flag(o, found)} | {_default(o)} | {_cell(o.help)} |" for o in own.values()]
        yield "\n".join(["| | default | |", "| --- | --- | --- |", *rows])


def _flag(option: Option, found: Declared) -> str:
    value = _metavar(option)
    if option.spelling.positional:
        return f"`{value}`"
    long = option.flag if option.kind is bool or not value else f"{option.flag} {value}"
    short = f"`{option.spelling.short}`, " if option.spelling.short else ""
    pair = (
        f", `--no-{option.flag[2:]}`"
        if option.kind is bool and option.name not in found.switches
        else ""
    )
    return f"{short}`{_cell(long)}`{pair}"


def _default(option: Option) -> str:
    if option.default is dataclasses.MISSING:
        return "required"
    if option.default is None or option.default is False or option.default in ("", ()):
        return ""
    return f"`{option.default}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def api_page() -> str:
    """docs/api.md."""
    head = f"# The Python API\n\n{MADE}\n\n{(raymat.__doc__ or '').splitlines()[2]} {(raymat.__doc__ or '').splitlines()[3]}"
    parts = [head.strip()]
    names = [name for name in raymat.__all__ if not name.startswith("__")]
    errors = [name for name in names if name.endswith("Error")]
    for name in (name for name in names if name not in errors):
        parts += [*_described(name, getattr(raymat, name))]
    parts.append(
        "## Errors\n\nAll are a `RaymatError`, with `line` (the message as one line) and `exit_code`."
    )
    rows = [f"| `{n}` | {_bases(n)} | {_cell(_first(getattr(raymat, n)))} |" for n in errors]
    parts.append("\n".join(["| error | is a | |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _bases(name: str) -> str:
    return ", ".join(f"`{base.__name__}`" for base in getattr(raymat, name).__bases__)


def _described(name: str, thing: Any) -> Iterator[str]:
    yield f"## {name}"
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        yield _prose(inspect.getdoc(thing) or "")
        rows = [
            f"| `{f.name}` | `{_cell(_plain(str(f.type)))}` |" for f in dataclasses.fields(thing)
        ]
        yield "\n".join(["| field | type |", "| --- | --- |", *rows])
    elif inspect.isclass(thing):
        yield _prose(inspect.getdoc(thing) or "")
        methods = [
            (n, m) for n, m in vars(thing).items() if not n.startswith("_") and inspect.getdoc(m)
        ]
        rows = [
            f"| `{_cell(n + _signature(getattr(thing, n)))}` | {_cell(_first(m))} |"
            for n, m in methods
        ]
        yield "\n".join(["| method | |", "| --- | --- |", *rows])
    else:
        yield f"```python\n{name}{_signature(thing)}\n```"
        yield _prose(inspect.getdoc(thing) or "")


def _plain(kind: str) -> str:
    return re.sub(r"Annotated\[([^,]+),.*\]", r"\1", kind)


class _Left:
    """A default that is left out."""

    def __repr__(self) -> str:
        return "..."


def _signature(thing: Any) -> str:
    """Without `self`, quotes around annotations, and defaults that are functions or objects."""
    if not callable(thing):
        return ""
    found = inspect.signature(thing)
    shown = [
        parameter
        if isinstance(parameter.default, (str, int, float, type(None), type))
        else parameter.replace(default=_Left())
        for parameter in found.parameters.values()
        if parameter.name != "self"
    ]
    text = str(found.replace(parameters=shown))
    return re.sub(
        r"(?<=: )'([^']*)'|(?<=-> )'([^']*)'", lambda quoted: quoted[1] or quoted[2], text
    )


def _first(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").splitlines()[0]


def _prose(text: str) -> str:
    """A docstring as Markdown: the lists of Args and Raises as paragraphs."""
    lines = []
    for line in text.splitlines():
        heading = re.fullmatch(r"(Args|Raises|Returns|Yields):", line.strip())
        lines.append(f"**{heading[1]}**\n" if heading else line.strip())
    return "\n".join(lines)


PAGES = {"commands.md": commands_page, "api.md": api_page}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (ROOT / "docs" / page).write_text(make(), encoding="utf-8")
