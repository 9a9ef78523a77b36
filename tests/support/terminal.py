"""A terminal of a given width: what a command's user sees in the end, and each line that did not fit.

python -m tests.support.terminal 80 raymat base --synthetic 40 ...
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import Mapping, Sequence

_TOKEN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|\x08|[^\x1b\r\n\x08]+|.", re.DOTALL)


class Terminal:
    """The screen with all that has scrolled out of it; knows carriage returns, erasing, and wrapping at its width."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines = [""]
        self.wrapped: list[str] = []
        """What was written over the right edge."""
        self._column = 0

    def feed(self, text: str) -> None:
        """Take what a program wrote."""
        for token in _TOKEN.findall(text):
            if token == "\r":
                self._column = 0
            elif token == "\n":
                self.lines.append("")
                self._column = 0
            elif token in ("\x1b[2K", "\x1b[K"):
                self.lines[-1] = "" if token == "\x1b[2K" else self.lines[-1][: self._column]
            elif not token.startswith("\x1b") and token != "\x08":
                self._write(token)

    def _write(self, text: str) -> None:
        for character in text:
            if self._column == self.width:
                self.wrapped.append(self.lines[-1])
                self.lines.append("")
                self._column = 0
            line = self.lines[-1].ljust(self._column)
            self.lines[-1] = line[: self._column] + character + line[self._column + 1 :]
            self._column += 1

    def shown(self) -> list[str]:
        """The lines, without the blanks at their ends."""
        return [line.rstrip() for line in self.lines]


def record(
    argv: Sequence[str], width: int, environment: Mapping[str, str] | None = None
) -> tuple[int, Terminal, str]:
    """Run a command in a terminal; return its exit status, the terminal, and all that was written."""
    child, master = pty.fork()
    if child == 0:
        os.execvpe(argv[0], list(argv), {**(environment or os.environ), "TERM": "xterm"})
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    written = bytearray()
    with contextlib.suppress(OSError):  # as which the end of a terminal is reported
        while data := os.read(master, 65536):
            written += data
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(master)
    text = written.decode(errors="replace")
    terminal = Terminal(width)
    terminal.feed(text)
    return status, terminal, text


def main() -> int:
    """Run the command that the arguments name, and print what its terminal shows."""
    status, terminal, _ = record(sys.argv[2:], int(sys.argv[1]))
    print("\n".join(terminal.shown()))
    print(f"[exit {status}; {len(terminal.wrapped)} lines were too wide]", file=sys.stderr)
    return status


def hear_interrupts() -> None:
    """Undo, in a new process, what a shell does to what it starts in the background, and nohup: they ignore interrupts and
    hang-ups."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
