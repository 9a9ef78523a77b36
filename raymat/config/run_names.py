"""Names of runs that every storage and system can hold: a run's folder may be copied anywhere."""

from __future__ import annotations

import re

LONGEST = 128
"""Characters; some file systems hold no more than 143 bytes in a name, and the run's files need some of the path."""
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for a device, whatever follows after a dot."""


def name_problem(name: str) -> str | None:
    """Return what makes a run's name one that some system cannot hold; None if every system can."""
    if DEVICE.fullmatch(name):
        return f"--name {name} is a device on Windows, which has no folder of that name: choose another"
    if name.endswith("."):
        return f"--name {name} ends with a dot, which Windows leaves out: choose another"
    if len(name) > LONGEST:
        return f"--name has {len(name)} characters, more than {LONGEST}, which not every storage holds: choose a shorter one"
    return None
