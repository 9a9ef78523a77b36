"""Laws of what the commands print."""

from __future__ import annotations

import io
import os
import sys

import pytest

from raymat.console import Display, ProgressBar, age, size
from tests.support.paths import ROOT
from tests.support.terminal import record


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


BAR = """
import sys, time
from raymat.console import ProgressBar
with ProgressBar("verify", sys.stderr) as progress:
    progress.begin(400_000_000)
    progress.add(200_000_000)
"""


@pytest.mark.parametrize(("width", "bar"), [(120, True), (60, False), (30, False)])
def test_a_narrow_terminal_has_a_short_bar_or_none(width: int, bar: bool) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    _, terminal, _ = record([sys.executable, "-c", BAR], width, environment)
    assert terminal.wrapped == []
    assert [line for line in terminal.shown() if line] == [terminal.shown()[0]]
    assert terminal.shown()[0].startswith("verify  [###" if bar else "verify  200.0 MB of 4")


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
    ("stream", "drawn"),
    [
        (_Terminal(), "\r\x1b[2K1 of 2\r\x1b[2Klost a node\n\r\x1b[2K1 of 2\r\x1b[2K2 of 2\n"),
        (io.StringIO(), "1 of 2\nlost a node\n2 of 2\n"),
    ],
)  # fmt: skip
def test_the_line_gives_way_to_news_that_stay(stream: io.StringIO, drawn: str) -> None:
    display = Display(stream)
    display.show("1 of 2")
    display.print("lost a node")
    display.show("1 of 2")
    display.show("2 of 2", last=True)
    assert stream.getvalue() == drawn


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
