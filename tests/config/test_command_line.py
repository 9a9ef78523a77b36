"""Laws of the commands' command lines: complete help, each default once, and mistakes in one line."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Annotated

import pytest

from raymat.cli.history import Options as EventOptions
from raymat.cli.main import COMMANDS, main
from raymat.cli.prune import Options
from raymat.config import command_line
from raymat.config.command_line import parse_options
from raymat.config.options import Spelling
from raymat.errors import ConfigError

HELPS = [*((c, "--help") for c in COMMANDS), ("base", "--help-all"), ("refine", "--help-all")]


def help_of(command: str, capsys: pytest.CaptureFixture[str], flag: str = "--help") -> str:
    with pytest.raises(SystemExit) as caught:
        main([command, flag])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["checkpoints", "demo", "evaluate", "verify", "export", "prune"]
)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(command, capsys)
    assert shown.startswith(f"usage: raymat {command} ")
    assert "Exit code: 0" in shown


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["export", "runs/a", "-o", "a.pth", "-h"], "usage: raymat export [-h] [OPTIONS] URL"),
        (["matte", "a.pth", "--help"], "usage: raymat matte [-h] [OPTIONS] WHAT"),
        (["evaluate", "a.pth", "b.pth", "--help"], "usage: raymat evaluate [-h] [OPTIONS] WHAT..."),
    ],
)
def test_help_behind_arguments_is_the_whole_help(
    words: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].rstrip() == usage
    assert shown == help_of(words[0], capsys)


@pytest.mark.parametrize(("command", "flag"), HELPS)
def test_help_gives_each_default_once(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = " ".join(help_of(command, capsys, flag).split())
    assert "None" not in words
    assert "SUPPRESS" not in words
    assert "(default: )" not in words
    assert "()" not in words
    for entry in re.split(r" (?=--[a-z])", words):
        assert not ("(default: " in entry and "Default: " in entry), entry


def test_help_gives_a_default_of_zero(capsys: pytest.CaptureFixture[str]) -> None:
    words = help_of("base", capsys, "--help-all").replace("│", " ").split()
    assert "every random draw of the run. (default: 0) " in " ".join(words)


@pytest.mark.parametrize(("command", "flag"), HELPS)
def test_help_explains_every_option(
    command: str, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in help_of(command, capsys, flag).splitlines():
        assert not re.fullmatch(r"[│ ] -\S+( \S+)?   +\(.*\) *│?", line)


@pytest.mark.parametrize(("command", "flag"), HELPS)
def test_help_keeps_to_80_columns(
    command: str, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = help_of(command, capsys, flag)
    assert " -h, --help " in shown
    assert max(map(len, shown.splitlines())) <= 80


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


def test_a_value_that_an_option_refuses_is_refused_by_every_command() -> None:
    with pytest.raises(ConfigError, match=r"^--attempt must be at least 1, got 0$"):
        parse_options(EventOptions, ["u", "--attempt", "0"], "raymat events")


def test_tyro_has_the_errors_that_are_not_public() -> None:
    """A tyro without them is met by the fallback of the next test, with messages that say less."""
    assert command_line.on_parse_error is not contextlib.nullcontext


def test_without_them_a_mistake_is_still_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "on_parse_error", contextlib.nullcontext)
    with pytest.raises(ConfigError) as caught:
        parse_options(Options, ["u", "--keep"], "raymat prune")
    assert caught.value.line == "the command line cannot be read (raymat prune --help)"


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files to read."""

    files: Annotated[tuple[str, ...], Spelling("FILE...", positional=True)]
    top: Annotated[int, Spelling(short="-t")] = 1
    quiet: bool = False


@pytest.mark.parametrize(
    "argv",
    ["a b -t 3 --quiet", "a --top=3 b --quiet", "--quiet a -t 3 b", "-t 1 --quiet --top 3 a b"],
)
def test_words_may_stand_before_between_and_after_flags(argv: str) -> None:
    assert parse_options(Files, argv.split(), "files") == Files(files=("a", "b"), top=3, quiet=True)


def test_a_switch_of_a_command_cannot_be_unset() -> None:
    with pytest.raises(ConfigError, match="unknown flag --no-quiet: did you mean --quiet"):
        parse_options(Files, ["a", "--no-quiet"], "files")
