"""Laws of the commands' command lines: complete help, each default once, and mistakes in one line."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from raymat.cli.main import COMMANDS, main
from raymat.cli.prune import Options
from raymat.config.command_line import parse_options
from raymat.errors import ConfigError


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["checkpoints", "evaluate", "verify", "export", "prune"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(command, capsys)
    assert shown.startswith(f"usage: raymat {command} ")
    assert "Exit code: 0" in shown


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"demo"}))
def test_help_gives_each_default_once(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(help_of(command, capsys).split())
    assert "None" not in words
    assert "SUPPRESS" not in words
    for entry in re.split(r" (?=--[a-z])", words):
        assert not ("(default: " in entry and "Default: " in entry), entry


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"demo"}))
def test_help_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line in help_of(command, capsys).splitlines():
        assert not re.fullmatch(r"  -\S+( \S+)?   +\(.*\)", line)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "Missing from raymat prune: URL --keep N (raymat prune --help)"),
        (["u", "--keep", "3", "--keeps", "4"], "unknown flag --keeps: did you mean --keep?"),
        (["u", "--keep"], "argument --keep: expected one argument (raymat prune --help)"),
        (["u", "--keep", "x"], "--keep: expected a whole number, got 'x'"),
    ],
)  # fmt: skip
def test_a_mistaken_command_line_is_one_line(argv: list[str], line: str, encoding: str) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(terminal), pytest.raises(ConfigError) as caught:
        parse_options(Options, argv, "raymat prune")
    assert caught.value.line == line
