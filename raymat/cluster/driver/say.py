"""Lines for whoever watches the driver."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Print a line for whoever watches the driver."""
    print(line, file=sys.stderr, flush=True)
