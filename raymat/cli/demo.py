"""`raymat demo`: both stages on this machine, with a worker killed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymat.config.command_line import parse_options


@dataclass(frozen=True)
class Options:
    """Train both stages on synthetic pictures in a new ./demo; kill a worker and resume.

    Exit code: 0, or 2 if a stage could not be trained.
    """


def main(argv: Sequence[str]) -> int:
    """Run `raymat demo` and return the exit code."""
    parse_options(Options, argv, "raymat demo")
    from raymat.cluster.demonstration import run_demo  # late: Ray takes a second to import

    return run_demo()
