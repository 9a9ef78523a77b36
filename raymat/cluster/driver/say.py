"""Lines for whoever watches the driver."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SILENT_SECONDS = 3.0
"""What takes longer is said."""


def say(line: str) -> None:
    """Print a line for whoever watches the driver."""
    print(line, file=sys.stderr, flush=True)


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
