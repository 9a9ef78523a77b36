"""Command lines, read by argparse into the options that dataclasses declare."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from raymat.config.options import Option, options_of
from raymat.config.values import Duration, Range
from raymat.errors import ConfigError

T = TypeVar("T")

_METAVARS = {int: "N", float: "X", str: "TEXT", Range: "N|MIN:MAX", Duration: "TIME"}


Groups = Mapping[str, Mapping[str, Option]]
"""Options by name, by the heading under which `--help` lists them; "" is argparse's own."""


def parse_options(kind: type[T], argv: Sequence[str], prog: str) -> T:
    """Read a command line into a dataclass; `--help` prints its docstrings and exits.

    Raises:
        ConfigError: what is wrong with the command line, in one line.
    """
    options = options_of(kind)
    groups = {"": options}
    named = named_options(argv, prog, inspect.getdoc(kind) or "", groups, switch="store_true")
    missing = [
        _written(option)
        for name, option in options.items()
        if name not in named and option.default is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"Missing from {prog}: {' '.join(missing)} ({prog} --help)")
    return kind(**named)


def named_options(
    argv: Sequence[str],
    prog: str,
    description: str,
    groups: Groups,
    switch: Any = argparse.BooleanOptionalAction,
) -> dict[str, Any]:
    """Return the options that a command line names, by name; `--help` prints and exits.

    `switch` is argparse's action for options that are true or false.

    Raises:
        ConfigError: an unknown flag, with the closest that exists, or a value that cannot be used.
    """
    options = {name: option for group in groups.values() for name, option in group.items()}
    parser = _parser(prog, description, groups, switch)
    words = [_with_dashes(word) for word in argv]
    _refuse_unknown_flags(words, options.values())
    given = vars(parser.parse_intermixed_args(words))
    return {n: _value(options[n], value) for n, value in given.items() if value is not None}


def closest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: what was meant, or where to look."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f": did you mean {near[0]}?" if near else ": --help lists what there is"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} ({self.prog} --help)")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _parser(prog: str, description: str, groups: Groups, switch: Any) -> _Parser:
    positional = [o for group in groups.values() for o in group.values() if o.spelling.positional]
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, "[-h] [OPTIONS]", *map(_written, positional)]),
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    for heading, options in groups.items():
        group = parser.add_argument_group(heading) if heading else parser
        for option in options.values():
            _add(group, option, switch)
    return parser


def _add(group: argparse._ActionsContainer, option: Option, switch: Any) -> None:
    help_text = (option.help + _default_hint(option)).replace("%", "%%")
    flags = [flag for flag in (option.spelling.short, option.flag) if flag]
    if option.spelling.positional:
        nargs = "*" if get_origin(option.kind) is tuple else "?"
        group.add_argument(option.name, nargs=nargs, metavar=_metavar(option), help=help_text)
    elif option.kind is bool:
        group.add_argument(*flags, action=switch, default=None, help=help_text)
    else:
        group.add_argument(*flags, metavar=_metavar(option), help=help_text)


def _default_hint(option: Option) -> str:
    if option.spelling.positional or option.default is None or option.default is False:
        return ""
    given = option.default is not dataclasses.MISSING
    return f" (default: {option.default})" if given else " (required)"


def _written(option: Option) -> str:
    metavar = _metavar(option)
    return metavar if option.spelling.positional else f"{option.flag} {metavar}"


def _metavar(option: Option) -> str:
    if option.spelling.metavar or get_origin(option.kind) is not Literal:
        return option.spelling.metavar or _METAVARS[option.kind]
    return f"{{{','.join(map(str, get_args(option.kind)))}}}"


def _with_dashes(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word.startswith("--") else word


def _refuse_unknown_flags(words: Iterable[str], options: Iterable[Option]) -> None:
    known = {"--help"}
    for option in options:
        known |= {option.flag, "--no" + option.flag[1:]} if option.kind is bool else {option.flag}
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        if flag not in known:
            raise ConfigError(f"unknown flag {flag}{closest(flag, known)}")


def _value(option: Option, given: Any) -> Any:
    if isinstance(given, list):
        return tuple(given)
    return option.read(given) if isinstance(given, str) else given
