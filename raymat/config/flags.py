"""A run's configuration from defaults, then a YAML file (`--config`), then flags.

Every option of `raymat.config.run` is a flag and a YAML key under its flat name; the same text means the same value in
either place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from raymat.config.command_line import Groups, ShortHelp, named_options
from raymat.config.hints import closest
from raymat.config.options import options_of
from raymat.config.run import SECTIONS, STAGE_DEFAULTS, RunConfig, all_options, build, overlay
from raymat.config.sections import Stage
from raymat.config.yaml_text import mistake, text_of
from raymat.errors import ConfigError, StorageError
from raymat.storage.faults import backend_errors, classify, reason
from raymat.storage.input_files import read_file
from raymat.storage.urls import redact

FIRST = (
    *("dataset", "backgrounds", "synthetic", "name", "storage"),
    *("init", "epochs", "batch_size", "workers", "config"),
)
"""Options that `--help` shows."""
EXAMPLES: dict[Stage, str] = {
    "base": """\
  raymat base --name try --synthetic 200 --steps 100 \\
      --resolution 128 --crop 64:128 --backbone mobilenetv2
  raymat base --name portraits --dataset data --backgrounds walls""",
    "refine": """\
  raymat refine --name sharp --init runs/try --synthetic 200 --steps 100 \\
      --resolution 128 --crop 64:128 --backbone mobilenetv2
  raymat refine --name sharp --init runs/portraits --dataset data \\
      --backgrounds walls""",
}


@dataclass(frozen=True, kw_only=True)
class _Files:
    """Options that only a command line has."""

    config: str | None = None
    """YAML file (path or any fsspec URL) of options, one `name: value` per line; flags override it."""


def parse_run(stage: Stage, argv: Sequence[str]) -> RunConfig:
    """Read a run's configuration from a command line; `--help` and `--help-all` print and exit.

    Raises:
        ConfigError: an unknown flag or key, or a value that cannot be used.
    """
    description = f"Train the {stage} network. The same --storage and --name resume the same run."
    options, _ = read_options(stage, argv, f"raymat {stage}", description)
    return build(stage, options)


def read_options(
    stage: Stage, argv: Sequence[str], prog: str, description: str, also: type | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a run's options by name, and those of the dataclass `also`, that a command line and its --config name.

    Raises:
        ConfigError: an unknown flag or key, or a value that cannot be read.
    """
    own = {} if also is None else options_of(also)
    known = _groups(stage)
    groups = {**known, "": {**own, **known[""]}}
    switches = {name: False for name, option in own.items() if option.kind is bool}
    short = ShortHelp(FIRST, EXAMPLES[stage]) if also is None else None
    flags = named_options(argv, prog, description, groups, switches, short)
    others = {name: flags.pop(name) for name in own if name in flags}
    source = flags.pop("config", None)
    options = read_yaml(source) if source is not None else {}
    return overlay(options, flags), others


def _groups(stage: Stage) -> Groups:
    headings = {section: name for name, section in SECTIONS.items()}
    groups = {"": options_of(_Files)}
    for name, option in all_options().items():
        default = STAGE_DEFAULTS[stage].get(name, option.default)
        option = dataclasses.replace(option, default=default)
        groups.setdefault(headings.get(option.owner, ""), {})[name] = option
    return groups


def read_yaml(source: str) -> dict[str, Any]:
    """Read the options in a YAML file at a path or any fsspec URL, without those that are null.

    Keys are flag names with - or _. Values are read as they are written, so that 1:4 stays a range (YAML 1.1 takes it for
    the number 64) and 1e-4 a number (YAML 1.1 takes it for text).

    Raises:
        ConfigError: the file cannot be read, is no mapping, or has an unknown, repeated or unusable entry.
    """
    known = all_options()
    options: dict[str, Any] = {}
    for place, key, node in _entries(redact(source), _read(source)):
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"{place}: unknown key {key!r}{closest(name, known)}")
        if name in options:
            raise ConfigError(f"{place}: {key!r} is given twice")
        if known[name].spelling.repeatable and isinstance(node, yaml.SequenceNode):
            lines = [each.value for each in node.value if isinstance(each, yaml.ScalarNode)]
            node = yaml.ScalarNode("tag:yaml.org,2002:str", "\n".join(lines))
        if not isinstance(node, yaml.ScalarNode):
            raise ConfigError(f"{place}: {key!r} must be a single value such as 4 or 256:512")
        if node.tag == "tag:yaml.org,2002:null":
            continue
        try:
            options[name] = known[name].read(node.value)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
    return options


def _read(source: str) -> str:
    try:
        return text_of(read_file(source))
    except FileNotFoundError:
        raise ConfigError(f"--config {redact(source)}: no such file") from None
    except (ValueError, StorageError) as error:
        raise ConfigError(f"--config {redact(source)}: cannot be read: {reason(error)}") from error
    except backend_errors() as error:
        why = classify(error).advice
        raise ConfigError(f"--config {redact(source)}: cannot be read: {why}") from error


def _entries(source: str, text: str) -> Iterator[tuple[str, str, yaml.Node]]:
    """Yield the (place, key, value node) of each top-level entry."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"--config {source}: not valid YAML: {mistake(error)}") from None
    if root is None:
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"--config {source}: expected one `name: value` a line")
    for key, value in root.value:
        yield f"{source}:{key.start_mark.line + 1}", str(key.value), value
