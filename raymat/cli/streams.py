"""What the standard streams must bear: closed ones, encodings that lack a letter, readers that have gone, full disks."""

from __future__ import annotations

import io
import os
import sys


def open_closed_streams() -> None:
    """Open the standard streams that the caller has closed (`>&-`), onto nothing.

    Python has None in their place, and the next file that is opened would get their number, and what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, os.O_RDWR)
        try:
            os.fstat(number)
        except OSError:
            os.dup2(opened, number)
        if opened > 2:
            os.close(opened)
        setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def print_all_text() -> None:
    """Let text that an encoding lacks, such as a lone surrogate from a file's name, be escaped as it is printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Let Python write what is left of the output nowhere: at its end it would complain that it cannot."""
    _discard(sys.stdout.fileno())


def discard_unwritable_messages() -> None:
    """The same for stderr, where what it holds cannot be written: Python would end with another exit code."""
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr.fileno())


def _discard(number: int) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), number)
