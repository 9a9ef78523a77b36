"""Laws of what the commands print."""

from __future__ import annotations

import contextlib
import io

import pytest

from raymat.cli.prune import Options
from raymat.console import ProgressBar, age, parse_options, size
from raymat.errors import ConfigError


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def _run(stream: io.StringIO) -> str:
    clock = _Clock()
    with ProgressBar("verify", stream, clock) as progress:
        progress.begin(400_000_000)
        for _ in range(4):
            clock.now += 6.0
            progress.add(100_000_000)
    return stream.getvalue()


def test_a_terminal_sees_one_line_that_grows() -> None:
    drawn = _run(_Terminal())
    assert drawn.count("\n") == 1
    shown = drawn.split("\r\x1b[2K")
    assert shown[1] == f"verify  [{' ' * 24}]  0 B of 400.0 MB  0%"
    assert shown[3] == (
        f"verify  [{'#' * 12}{' ' * 12}]  200.0 MB of 400.0 MB  50%  16.7 MB/s  12 s left"
    )
    assert shown[-1] == f"verify  [{'#' * 24}]  400.0 MB of 400.0 MB  100%  16.7 MB/s\n"


def test_a_log_sees_a_plain_line_now_and_then() -> None:
    assert _run(io.StringIO()).splitlines() == [
        "verify  200.0 MB of 400.0 MB  50%  16.7 MB/s  12 s left",
        "verify  400.0 MB of 400.0 MB  100%  16.7 MB/s",
        "verify  400.0 MB of 400.0 MB  100%  16.7 MB/s",
    ]


def test_things_are_counted_as_they_are_called() -> None:
    clock, stream = _Clock(), _Terminal()
    with ProgressBar("evaluate", stream, clock, noun="examples") as progress:
        progress.begin(50)
        clock.now = 5.0
        progress.add(10)
    shown = stream.getvalue().split("\r\x1b[2K")
    assert shown[2] == (
        f"evaluate  [{'#' * 4}{' ' * 20}]  10 of 50 examples  20%  2.0/s  20 s left"
    )


@pytest.mark.parametrize(("stream", "left"), [(_Terminal(), "\r\x1b[2K"), (io.StringIO(), "")])
def test_nothing_stays_of_an_interrupted_bar(stream: io.StringIO, left: str) -> None:
    with pytest.raises(KeyboardInterrupt), ProgressBar("verify", stream) as progress:
        progress.begin(50)
        before = stream.getvalue()
        raise KeyboardInterrupt
    assert stream.getvalue() == before + left


def test_nothing_to_do_is_not_shown() -> None:
    stream = io.StringIO()
    with ProgressBar("verify", stream):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"),
     (483_300_000, "483.3 MB"), (2_400_000_000, "2.4 GB"), (3.5e15, "3500.0 TB")],
)  # fmt: skip
def test_sizes_are_decimal(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (42.4, "42 s"), (61, "1 min"), (3599, "59 min"), (3600, "1.0 h"), (267_840, "3.1 d")],
)  # fmt: skip
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize("command", ["checkpoints", "evaluate", "verify", "export", "prune"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from raymat.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert shown.startswith(f"usage: raymat {command} ")
    assert "Exit code: 0" in shown


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "Missing from raymat prune: URL --keep N (raymat prune --help)"),
        (["u", "--keep", "3", "--keeps", "4"], "Unrecognized options: --keeps, 4 (raymat prune --help)"),
        (["u", "--keep"], "Missing value for argument '--keep'. Expected 1 values. (raymat prune --help)"),
        (["u", "--keep", "x"], "Error parsing --keep: invalid literal for int() with base 10: 'x' (raymat prune --help)"),
    ],
)  # fmt: skip
def test_a_mistaken_command_line_is_one_line(argv: list[str], line: str, encoding: str) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with contextlib.redirect_stdout(terminal), pytest.raises(ConfigError) as caught:
        parse_options(Options, argv, "raymat prune")
    assert caught.value.line == line
