"""Command lines, read by tyro into the options that dataclasses declare."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import textwrap
from collections.abc import Collection, Mapping, Sequence
from shutil import get_terminal_size
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_args, get_origin

import tyro

from raymat.config.hints import closest
from raymat.config.options import Option, options_of
from raymat.config.prices import Prices
from raymat.config.values import Duration, Interval, Numbers, Range
from raymat.errors import ConfigError
from raymat.storage.urls import redact_text

try:
    from tyro._errors import on_parse_error  # not public: without it, tyro prints a box and exits
except ImportError:
    on_parse_error = contextlib.nullcontext  # type: ignore[assignment]

log = logging.getLogger(__name__)

T = TypeVar("T")

_METAVARS = {
    int: "N",
    float: "X",
    str: "TEXT",
    Range: "N|MIN:MAX",
    Duration: "TIME",
    Interval: "N|auto",
    Numbers: "X,X,...",
    Prices: "PRICES",
}

Options = Mapping[str, Option]
Groups = Mapping[str, Options]
"""Options by name, by the heading under which `--help` lists them; those of "" have none."""


@dataclasses.dataclass(frozen=True)
class ShortHelp:
    """What `--help` shows where there are too many options to read; `--help-all` then shows all."""

    first: Sequence[str]
    """Names of the options that it shows."""
    examples: str
    """Command lines, one a line, each indented."""


def parse_options(kind: type[T], argv: Sequence[str], prog: str) -> T:
    """Read a command line into a dataclass; `--help` prints its docstrings and exits.

    Raises:
        ConfigError: what is wrong with the command line, in one line.
    """
    options = options_of(kind)
    switches = {name: False for name, option in options.items() if option.kind is bool}
    named = named_options(argv, prog, inspect.getdoc(kind) or "", {"": options}, switches)
    missing = [
        f"{'' if option.spelling.positional else option.flag + ' '}{_metavar(option)}"
        for name, option in options.items()
        if name not in named and option.default is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"Missing from {prog}: {' '.join(missing)} ({prog} --help)")
    for name, value in named.items():
        options[name].check(value)
    return kind(**named)


def named_options(
    argv: Sequence[str],
    prog: str,
    description: str,
    groups: Groups,
    switches: Mapping[str, bool],
    short: ShortHelp | None = None,
) -> dict[str, Any]:
    """Return the options that a command line names, by name; `--help` prints and exits, and `--help-all` if there is a `short`.

    Options in `switches` have no `--no-` form; where they are not named, the value there is returned.

    Raises:
        ConfigError: an unknown flag, with the closest that exists, or a value that cannot be used.
    """
    options = {name: option for group in groups.values() for name, option in group.items()}
    everything = short is not None and "--help-all" in argv
    asked = not everything and bool({"-h", "--help"} & {*argv})
    if everything or asked:
        argv = ["--help"]  # tyro's help leaves out the arguments that were given before it
    if short and asked:
        groups = {"": {name: options[name] for name in short.first}}
        description += f"\n\n{short.examples}\n\n--help-all shows all {len(options)} options."
    argv = _each_once(argv, options)
    given, rest = _read(argv, prog, description, _dictionary(groups, switches), {"": switches})
    named = {name: value for group in given.values() for name, value in group.items()}
    _refuse_flags(rest, options, switches, "--help-all" if short else "--help")
    lists = [name for name, option in options.items() if get_origin(option.kind) is tuple]
    if rest and not lists:
        raise ConfigError(f"unrecognized arguments: {redact_text(' '.join(rest))} ({prog} --help)")
    for name in lists:  # tyro ends a list at the first flag
        named[name] = (*named.get(name, ()), *rest)
    for name, value in named.items():
        options[name].refuse_bad_urls(value)
    return {n: options[n].read(v) if isinstance(v, str) else v for n, v in named.items()}


def _each_once(argv: Sequence[str], options: Options) -> list[str]:
    """Return a command line in which no repeatable flag comes twice: its values are joined. Of others the last counts, and
    that is said."""
    known = {option.flag: option for option in options.values()}
    words, places = list[str](), dict[str, int]()
    waiting = iter(argv)
    for word in waiting:
        name, equals, value = word.partition("=")
        flag = name.replace("_", "-")
        if flag not in known:
            words.append(word)
            continue
        if flag in places and not known[flag].spelling.repeatable:
            log.warning("%s is given more than once: the last one counts", flag)
        if known[flag].spelling.repeatable:
            if not equals:
                value = next(waiting, "")
            if not value or (value.startswith("--") and not equals):
                words += [word, value] if value else [word]
                continue
            if flag in places:
                words[places[flag]] += f"\n{value}"
                continue
            word = f"{flag}={value}"
        places[flag] = len(words)
        words.append(word)
    return words


def _read(argv: Sequence[str], prog: str, text: str, kind: Any, default: Any) -> tuple[Any, Any]:
    """Return what tyro reads into a `kind`, and the words that it leaves."""
    # tyro joins the lines of a text, but for those that begin with a space: of examples, which stay as they are.
    lines = textwrap.TextWrapper(get_terminal_size()[0], initial_indent=" ", subsequent_indent=" ")
    try:
        with on_parse_error(_refuse_lone_flag):
            return tyro.cli(
                kind,
                args=argv,
                prog=prog,
                description="\n\n".join(
                    part if part.startswith(" ") else lines.fill(part)
                    for part in text.split("\n\n")
                ),
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if stop.code:
            raise ConfigError(f"the command line cannot be read ({prog} --help)") from None
        raise


def _refuse_lone_flag(event: Any) -> None:
    flags = "/".join(event.argument.lowered.name_or_flags)
    raise ConfigError(f"argument {flags}: expected one argument ({event.prog} --help)")


def _refuse_flags(
    words: list[str], options: Options, switches: Collection[str], helps: str
) -> None:
    known = {"--help", helps} | {option.flag for option in options.values()}
    pairs = [o for name, o in options.items() if o.kind is bool and name not in switches]
    known |= {"--no" + option.flag[1:] for option in pairs}
    for word in words:
        if word.startswith("-"):
            flag = word.partition("=")[0].replace("_", "-")
            hint = closest(flag, known, f"{helps} lists what there is")
            raise ConfigError(f"unknown flag {flag}{hint}")


def _dictionary(groups: Groups, switches: Collection[str]) -> Any:
    """Return a type for tyro: a dictionary for each heading, with the options that are named."""
    typed_dict: Any = TypedDict  # made from data, which type checkers do not follow
    members = {}
    for heading, options in groups.items():
        fields = {name: _text(option, name in switches) for name, option in options.items()}
        docs = [str(option.owner.__doc__).splitlines()[0] for option in options.values()]
        group = typed_dict("Group", fields, total=False)
        members[heading] = Annotated[group, tyro.conf.arg(help="".join(docs[:1]))]
    return typed_dict("Groups", members)


def _text(option: Option, switch: bool) -> Any:
    """Return a type for tyro, which leaves a value as text for `Option.read`."""
    default, short = option.default, option.spelling.short
    hint = "(required)" if default is dataclasses.MISSING else f"(default: {default})"
    # Nothing, which users do not write; 0 is a number like others.
    unsaid = default is None or default is False or default in ((), "")
    shown = tyro.conf.arg(
        metavar=_metavar(option),
        help=option.help,
        help_behavior_hint="" if unsaid else hint,
        aliases=[short] if short else None,
    )
    kind: Any = option.kind if option.kind is bool or get_origin(option.kind) is tuple else str
    kind = Annotated[kind, tyro.conf.Positional] if option.spelling.positional else kind
    kind = Annotated[kind, tyro.conf.FlagCreatePairsOff] if switch else kind
    return Annotated[kind, shown]


def _metavar(option: Option) -> str | None:
    if option.spelling.metavar or get_origin(option.kind) is not Literal:
        return option.spelling.metavar or _METAVARS.get(option.kind)
    return f"{{{','.join(map(str, get_args(option.kind)))}}}"
