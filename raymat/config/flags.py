"""From flags and YAML to a run's configuration: defaults, then `--config FILE.yaml`, then flags.

Every option of `raymat.config.run` is a flag and a YAML key under its flat name; both are read by the same parser, so that a
value means the same in either place.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import io
import itertools
import math
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import fsspec
import tyro
import yaml

from raymat.config import run as configuration
from raymat.config.run import Duration, Range, RunConfig, Stage
from raymat.errors import ConfigError, one_line
from raymat.storage.faults import backend_errors, reason
from raymat.storage.urls import redact

ALTERNATIVES = (("epochs",), ("steps",)), (("dataset", "backgrounds"), ("synthetic",))
"""Options that exclude each other: naming one side replaces the other side of a lower layer."""

CONFIG_HELP = (
    "YAML file (path or any fsspec URL) of options, one `name: value` a line; flags override it."
)


@dataclass(frozen=True)
class Option:
    """One option: its flat name, the section that owns it, its type, what it means and what it is when not given."""

    name: str
    section: str
    kind: Any
    help: str
    default: Any

    @property
    def flag(self) -> str:
        """The option as it is written on a command line."""
        return "--" + self.name.replace("_", "-")

    def parse(self, text: str) -> Any:
        """The value that `text` stands for.

        Raises:
            ConfigError: what was expected of this option and what came.
        """
        try:
            return _parser(self.kind)(text)
        except ConfigError as error:
            raise ConfigError(f"{self.flag}: {error}") from None


def parse_run(stage: Stage, argv: Sequence[str]) -> RunConfig:
    """A run's configuration from a command line without the program's name; `--help` prints and exits.

    Raises:
        ConfigError: an unknown flag or key, or a value that cannot be used.
    """
    flags = read_flags(stage, argv)
    source = flags.pop("config", None)
    options = read_yaml(source) if source is not None else {}
    return configuration.build(stage, overlay(options, flags))


def overlay(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """`upper` over `lower`, where naming an option of `upper` also takes its alternatives in `lower` away."""
    replaced: set[str] = set()
    for one, other in ALTERNATIVES:
        if upper.keys() & set(one):
            replaced |= set(other)
        if upper.keys() & set(other):
            replaced |= set(one)
    return {name: value for name, value in lower.items() if name not in replaced} | upper


def options_of(stage: Stage) -> dict[str, Option]:
    """Every option by its flat name, in the order in which `--help` shows them."""
    defaults = configuration.STAGE_DEFAULTS[stage]
    found = {}
    for name, (section, field) in configuration.flat_fields().items():
        owner = configuration.RunConfig if section == "" else _section_type(section)
        default = defaults.get(name, field.default)
        text = _field_docs(owner).get(name, "")
        found[name] = Option(name, section, _kind(owner, name), text, default)
    return found


# Flags.


class _BadValueError(Exception):
    """Carries a ConfigError through tyro, which would draw a box around a ValueError."""


def read_flags(stage: Stage, argv: Sequence[str]) -> dict[str, Any]:
    """The options that a command line names, and no others; `config` is the YAML file if it names one.

    Raises:
        ConfigError: a flag that does not exist, with the closest that does, or a value that cannot be used.
    """
    options = options_of(stage)
    _refuse_unknown_flags(argv, options.values())
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            groups = tyro.cli(
                _flag_groups(stage, options.values()),
                args=list(argv),
                prog=f"raymat {stage}",
                description=f"Train the {stage} network. The same --storage and --name resume the same run.",
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except _BadValueError as error:
        raise ConfigError(str(error)) from None
    except SystemExit as error:
        if not error.code:
            raise  # --help
        raise ConfigError(_condense(said.getvalue())) from None
    return {name: value for group in groups.values() for name, value in group.items()}


def _flag_groups(stage: Stage, options: Iterable[Option]) -> Any:
    """A type for tyro: a dictionary of dictionaries, one a section, of which only the named keys appear in the result."""
    config = Option("config", "", str, CONFIG_HELP, None)
    members: dict[str, dict[str, Any]] = {"run": {"config": _annotation(config)}}
    for option in options:
        members.setdefault(option.section or "run", {})[option.name] = _annotation(option)
    typed_dict: Any = TypedDict  # made from data, which type checkers do not follow
    groups = {}
    for section, flags in members.items():
        group = typed_dict(section, flags, total=False)
        owner = configuration.RunConfig if section == "run" else _section_type(section)
        group.__doc__ = inspect.getdoc(owner)
        groups[section] = group
    return typed_dict("Flags", groups)


def _annotation(option: Option) -> Any:
    """The option's type with all that tyro shows and does for it."""
    described = tyro.conf.arg(help=option.help, help_behavior_hint=_default_hint(option.default))
    if option.kind is bool:
        return Annotated[bool, described]

    def from_text(texts: list[str]) -> Any:
        try:
            return option.parse(texts[0])
        except ConfigError as error:
            raise _BadValueError(str(error)) from None

    spec: Any = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=_metavar(option.kind),
        instance_from_str=from_text,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )
    return Annotated[object, spec, described]


def _default_hint(default: Any) -> str:
    if default is dataclasses.MISSING:
        return "(required)"
    return "" if default is None else f"(default: {default})"


def _refuse_unknown_flags(argv: Sequence[str], options: Iterable[Option]) -> None:
    known = {"--help", "--config"}
    for option in options:
        known |= {option.flag, "--no" + option.flag[1:]} if option.kind is bool else {option.flag}
    for word in argv:
        flag = word.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            raise ConfigError(f"unknown flag {flag}{_closest(flag, known)}")


def _closest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f": did you mean {near[0]}?" if near else ": --help lists what there is"


def _condense(box: str) -> str:
    """The first paragraph of one of tyro's boxes as one line."""
    inside = [line.strip("│ ") for line in box.splitlines() if line.startswith("│")]
    first = list(_until(lambda line: line.startswith("─"), inside)) or box.split("\n")
    return " ".join(" ".join(first).split())


def _until(stop: Callable[[str], bool], lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if stop(line):
            return
        yield line


# YAML.


def read_yaml(source: str) -> dict[str, Any]:
    """The options in a YAML file at a path or any fsspec URL; a key without a value (or null) is left out.

    Keys are flag names with - or _. Values are read as they are written, so that 1:4 stays a range (YAML 1.1 takes it for
    the number 64) and 1e-4 a number (YAML 1.1 takes it for text).

    Raises:
        ConfigError: the file cannot be read, is no mapping, or has an unknown, repeated or unusable entry.
    """
    known = options_of("base")
    options: dict[str, Any] = {}
    for place, key, node in _entries(redact(source), _read(source)):
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"{place}: unknown key {key!r}{_closest(name, known)}")
        if name in options:
            raise ConfigError(f"{place}: {key!r} is given twice")
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{place}: {key!r} must be a single value such as 4 or 256:512")
        if node.tag == "tag:yaml.org,2002:null":
            continue
        try:
            options[name] = known[name].parse(node.value)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
    return options


def _read(source: str) -> str:
    try:
        with fsspec.open(source, "r", encoding="utf-8") as file:
            return typing.cast(str, file.read())
    except FileNotFoundError:
        raise ConfigError(f"--config {redact(source)}: no such file") from None
    except backend_errors(ValueError, ImportError) as error:
        raise ConfigError(f"--config {redact(source)}: cannot be read: {reason(error)}") from error


def _entries(source: str, text: str) -> Iterator[tuple[str, str, yaml.Node]]:
    """The (place, key, value node) of each top-level entry."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {source}: not valid YAML: {one_line(error)}") from None
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"--config {source}: expected one `name: value` a line")
    for key, value in root.value:
        yield f"{source}:{key.start_mark.line + 1}", str(key.value), value


# Values.


def _parser(kind: Any) -> Callable[[str], Any]:
    if typing.get_origin(kind) is Literal:
        return functools.partial(_choice, typing.get_args(kind))
    return _PARSERS[kind]


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"expected a whole number, got {text!r}") from None


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"expected a number, got {text!r}")
    return value


def _switch(text: str) -> bool:
    lowered = text.lower()
    if lowered in ("true", "yes", "on"):
        return True
    if lowered in ("false", "no", "off"):
        return False
    raise ConfigError(f"expected true or false, got {text!r}")


def _choice(choices: Sequence[Any], text: str) -> Any:
    for choice in choices:
        if str(choice) == text:
            return choice
    raise ConfigError(f"expected one of {', '.join(map(str, choices))}, got {text!r}")


_PARSERS: dict[Any, Callable[[str], Any]] = {
    bool: _switch,
    float: _number,
    int: _whole,
    str: str,
    Range: Range.parse,
    Duration: Duration.parse,
}


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    return {int: "N", float: "X", str: "TEXT", Range: "N|MIN:MAX", Duration: "TIME"}[kind]


# What the configuration's classes say of themselves.


def _section_type(section: str) -> type:
    return typing.cast(type, _kind(configuration.RunConfig, section))


def _kind(owner: type, name: str) -> Any:
    """The field's type, without the None of an option that may stay unset."""
    (only,) = (kind for kind in configuration.field_kinds(owner)[name] if kind is not type(None))
    return only


@functools.cache
def _field_docs(owner: type) -> dict[str, str]:
    """The text below each field: what `--help` prints."""
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(configuration)).body
        if isinstance(node, ast.ClassDef) and node.name == owner.__name__
    )
    docs = {}
    for field, after in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[field.target.id] = re.sub(r"\s+", " ", str(after.value.value))
    return docs
