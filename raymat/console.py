"""What the small commands share at a terminal: options, tables, sizes, ages, and a progress bar."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Annotated, TextIO, TypeVar

import tyro

from raymat.errors import ConfigError

BAR = 24
"""Characters of a progress bar."""
TERMINAL_SECONDS = 0.1
"""Between two drawings of a bar."""
LOG_SECONDS = 10.0
"""Between two lines where there is no terminal to overwrite one on."""

T = TypeVar("T")

Url = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL")]
"""The field's type for a URL that is given without a flag."""


def parse_options(kind: type[T], argv: Sequence[str], prog: str) -> T:
    """A dataclass from a command line; its docstrings are what `--help` prints, and exits.

    Raises:
        ConfigError: what is wrong with the command line, in one line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind, args=list(argv), prog=prog, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as error:
        if not error.code:
            raise  # --help
        raise ConfigError(f"{_first_paragraph(said.getvalue())} ({prog} --help)") from None


def columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows as aligned text, one a line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def size(count: float) -> str:
    """Bytes in decimal units, as in "483.1 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """A time in its largest unit, as in "42 s", "7 min", "5.2 h" or "3.1 d"."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86400 else f"{seconds / 86400:.1f} d"


def count(number: int, noun: str) -> str:
    """As in "1 checkpoint" and "2 checkpoints"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class ProgressBar:
    """Work done while a block runs: a bar that is redrawn on a terminal, plain lines in a log.

    Threads may share it. Nothing is shown before `begin`, and nothing stays of a bar that is interrupted.
    """

    def __init__(
        self,
        label: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        noun: str | None = None,
    ) -> None:
        """`stream`: default stderr. `clock`: in seconds. `noun`: what is counted, in the plural; None: bytes."""
        self._label, self._clock, self._noun = label, clock, noun
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._lock = threading.Lock()
        self._total: int | None = None
        self._done = 0
        self._began = self._shown = clock()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            if self._total is None:
                return
            if kind is not KeyboardInterrupt:
                self._show("\n")
            elif self._terminal:
                self._stream.write("\r\x1b[2K")

    def begin(self, total: int) -> None:
        """`total` bytes or things are to be done from now on."""
        with self._lock:
            self._total, self._done = total, 0
            self._began = self._shown = self._clock()
            if self._terminal:
                self._show("")

    def add(self, done: int) -> None:
        """So many more are done."""
        with self._lock:
            self._done += done
            pause = TERMINAL_SECONDS if self._terminal else LOG_SECONDS
            if self._clock() - self._shown >= pause:
                self._show("" if self._terminal else "\n")

    def _show(self, end: str) -> None:
        self._shown = self._clock()
        self._stream.write((f"\r\x1b[2K{self._line()}" if self._terminal else self._line()) + end)
        self._stream.flush()

    def _line(self) -> str:
        total, seconds = self._total or 0, self._clock() - self._began
        part = min(1.0, self._done / total) if total else 1.0
        bar = f"[{'#' * int(BAR * part):<{BAR}}]  " if self._terminal else ""
        if self._noun is None:
            amount = f"{size(self._done)} of {size(total)}"
        else:
            amount = f"{self._done} of {total} {self._noun}"
        line = f"{self._label}  {bar}{amount}  {100 * part:.0f}%"
        if seconds > 0 and self._done:
            rate = self._done / seconds
            line += f"  {size(rate) if self._noun is None else f'{rate:.1f}'}/s"
            line += f"  {age((total - self._done) / rate)} left" if part < 1 else ""
        return line


def _first_paragraph(box: str) -> str:
    """What one of tyro's boxes says, as one line, without the help that stands deeper in it.

    Where stdout is not UTF-8 the box has no frame, and its title a line of its own.
    """
    first = []
    for line in (line[1:].rstrip("│ ") for line in box.splitlines()[1:]):
        if line.startswith((" ─", " --", "─")):
            break
        if not line.startswith(("---", " " * 9)):
            first.append(line)
    return " ".join(" ".join(first).split())
