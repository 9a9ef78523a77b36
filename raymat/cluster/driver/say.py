"""Lines for whoever watches the driver."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raymat.json_lines import tell

SILENT_SECONDS = 3.0
"""What takes longer is said."""


def say(text: str) -> None:
    """Print a line, or several, for whoever watches the driver."""
    tell(text)


def warn(text: str) -> None:
    """Print a line of something that may need somebody."""
    tell(text, "warning")


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Say what is waited for, if the block takes longer than people wait without a word."""
    timer = threading.Timer(SILENT_SECONDS, say, [f"waiting for {what}"])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
