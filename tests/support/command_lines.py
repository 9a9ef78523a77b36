"""Command lines read by raymat's own parsers, and no further: what a document shows can be tried in milliseconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from raymat.cli.main import COMMANDS
from raymat.config import command_line, flags
from raymat.config.command_line import Groups
from raymat.config.run import build

UNFINISHED = "..."
"""Stands for words that a document leaves out."""


@dataclass(frozen=True)
class Declared:
    """What a command declares: its name, its text, its options by heading."""

    prog: str
    description: str
    groups: Groups
    switches: Mapping[str, bool]


class _Stop(Exception):
    """A command line has been read."""

    def __init__(self, declared: Declared, given: dict[str, Any]) -> None:
        super().__init__(declared.prog)
        self.declared, self.given = declared, given


def declared(*words: str) -> Declared:
    """What the command of these words declares, as `declared("cluster", "check")`."""
    return _read([*words]).declared


def read(words: Sequence[str]) -> None:
    """Read the words after `raymat` as the command does; `...` stands for any others.

    Raises:
        ConfigError: a flag that does not exist, a value that cannot be used, or one that is missing.
    """
    whole = UNFINISHED not in words
    stopped = _read([word for word in words if word != UNFINISHED])
    options = {name: o for group in stopped.declared.groups.values() for name, o in group.items()}
    if whole and words[0] in ("base", "refine") and "config" not in stopped.given:
        build(words[0], stopped.given)  # type: ignore[arg-type]
    elif whole and words[0] not in ("base", "refine", "check"):
        for name, option in options.items():
            if name not in stopped.given and option.default is command_line.dataclasses.MISSING:
                raise command_line.ConfigError(f"{option.flag} is missing")


def _read(words: list[str]) -> _Stop:
    with _stopping():
        try:
            COMMANDS[words[0]].run(words[1:])
        except _Stop as stopped:
            return stopped
    raise AssertionError(f"raymat {words[0]} reads no command line")


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    real = command_line.named_options

    def stop(
        argv: Any, prog: str, text: str, groups: Groups, switches: Any, short: Any = None
    ) -> Any:
        raise _Stop(
            Declared(prog, text, groups, switches), real(argv, prog, text, groups, switches, short)
        )

    with (
        patch.object(command_line, "named_options", stop),
        patch.object(flags, "named_options", stop),
    ):
        yield
