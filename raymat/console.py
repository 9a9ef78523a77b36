"""What commands print: tables, sizes, ages, and progress."""

from __future__ import annotations

import os
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TextIO

BAR = 24
"""Characters of a progress bar."""
TERMINAL_SECONDS = 0.1
"""Between two drawings of a line on a terminal."""
LOG_SECONDS = (10.0, 60.0)
"""Between two lines in a log, where none can be overwritten: at first, and in the end."""
CLEAR = "\r\x1b[2K"
"""Clears a terminal's line."""


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Align rows as text, one per line."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell + " " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True)
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def cells(text: str) -> int:
    """Return how many columns of a terminal a text takes: letters of East Asia take two, accents of their own none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def cut(text: str, room: int | None) -> str:
    """Return as much of a text as fits into so many columns of a terminal; None: all of it."""
    while room is not None and cells(text) > room:
        text = text[: min(room, len(text) - 1)]
    return text


def printable(text: str) -> str:
    """Return a text that came from elsewhere without what steers a terminal: control characters are escaped."""
    if text.isprintable():
        return text
    steers = ("Cc", "Zl", "Zp")
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in steers or unicodedata.bidirectional(letter) in _TURNS
        else letter
        for letter in text
    )


_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Classes of letters that turn the direction of those after them."""


def size(count: float) -> str:
    """Format bytes in decimal units, as in "483.1 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """Format a time in its largest unit, as in "42 s", "7 min", "5.2 h" or "3.1 d"."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86400 else f"{seconds / 86400:.1f} d"


def count(number: int, noun: str) -> str:
    """Format a number with its noun, as in "1 checkpoint" and "2 checkpoints"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Display:
    """A line that shows progress: redrawn in place on a terminal, printed anew now and then in a log."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`stream`: default stderr. `clock`: in seconds."""
        self._stream = stream or sys.stderr
        self._is_result = self._stream is sys.stdout
        """Whether somebody asked for the lines. Those beside a result may be lost: a full disk below a log ends no run."""
        self._clock = clock
        self._shown = ""
        self._began = clock()
        self._shown_at = -LOG_SECONDS[1]
        self.terminal = self._stream.isatty()

    @property
    def width(self) -> int | None:
        """Columns that a line may have; None in a log. The last one stays free: some terminals wrap as it is filled."""
        try:
            found = os.get_terminal_size(self._stream.fileno()).columns if self.terminal else None
        except (OSError, ValueError):  # a stream that only says that it is one
            return None
        return None if found is None else max(20, (found or 80) - 1)

    @property
    def due(self) -> bool:
        """Whether enough time has passed to show the line again."""
        now, (least, most) = self._clock(), LOG_SECONDS
        # The longer it takes, the fewer lines does each hour of a log need.
        pause = max(least, min(most, (now - self._began) / 10))
        return now - self._shown_at >= (TERMINAL_SECONDS if self.terminal else pause)

    def wait(self) -> None:
        """Start the time until the line is due."""
        self._shown_at = self._clock()

    def show(self, line: str, last: bool = False) -> None:
        """Show the line as it is now, cut to the width; `last` leaves it on a terminal. A log gets no line twice in a row."""
        if self.terminal:
            self._write(CLEAR + cut(line, self.width) + ("\n" if last else ""))
        elif last or line != self._shown:
            self._write(f"{line}\n")
        else:
            return
        self._shown = line
        self.wait()

    def print(self, text: str) -> None:
        """Print a text that stays, in place of the line until that is shown again."""
        self._write((CLEAR if self.terminal else "") + f"{text}\n")

    def clear(self) -> None:
        """Remove the line from a terminal."""
        self._write(CLEAR if self.terminal else "")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            if self._is_result:
                raise


class Screen:
    """A terminal's whole screen, redrawn in place; what it showed before comes back at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines that may be written."""
        try:
            columns, lines = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            columns, lines = 80, 24
        return max(20, (columns or 80) - 1), max(5, (lines or 24) - 1)

    def __enter__(self) -> Screen:
        self._write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._write("\x1b[?25h\x1b[?1049l")

    def show(self, lines: Sequence[str]) -> None:
        """Show these lines instead of those before, cut to the size of the screen."""
        columns, most = self.size
        shown = "".join(f"{cut(line, columns)}\x1b[K\n" for line in lines[:most])
        self._write(f"\x1b[H{shown}\x1b[J")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def bar(part: float, length: int) -> str:
    """Draw a share of 0 to 1 as a bar of so many characters between brackets."""
    return f"[{'#' * int(length * part):<{length}}]"


class ProgressBar:
    """Work done while a block runs, as a bar on a terminal and plain lines in a log.

    Threads may share it. Nothing is shown before `begin`, and an interrupt removes the bar.
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
        self._display = Display(stream, clock)
        self._lock = threading.Lock()
        self._total: int | None = None
        self._done = 0
        self._began = clock()

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
            if kind is KeyboardInterrupt:
                self._display.clear()
            else:
                self._display.show(self._line(), last=True)

    def begin(self, total: int) -> None:
        """Start counting from zero to `total` bytes or things."""
        with self._lock:
            self._total, self._done, self._began = total, 0, self._clock()
            self._display.wait()
            if self._display.terminal:
                self._display.show(self._line())

    def add(self, done: int) -> None:
        """Count `done` more bytes or things."""
        with self._lock:
            self._done += done
            if self._display.due:
                self._display.show(self._line())

    def _line(self) -> str:
        total, seconds = self._total or 0, self._clock() - self._began
        part = min(1.0, self._done / total) if total else 1.0
        amount = f"{self._amount(self._done)} of {self._amount(total)}"
        line = f"{amount}{f' {self._noun}' if self._noun else ''}  {100 * part:.0f}%"
        if seconds > 0 and self._done:
            rate = self._done / seconds
            line += f"  {f'{rate:.1f}' if self._noun else size(rate)}/s"
            line += f"  {age((total - self._done) / rate)} left" if part < 1 else ""
        return f"{self._label}  {self._bar(part, len(self._label) + 2 + len(line))}{line}"

    def _bar(self, part: float, taken: int) -> str:
        """Draw the bar as long as it may be beside what takes `taken` columns; not at all where that is short, or in a log."""
        width = self._display.width
        length = min(BAR, BAR if width is None else width - taken - 4)
        if not self._display.terminal or length < 4:
            return ""
        return f"{bar(part, length)}  "

    def _amount(self, done: int) -> str:
        return str(done) if self._noun else size(done)
