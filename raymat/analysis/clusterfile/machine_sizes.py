"""What EC2's names of instance types say of a machine, for the families that raymat is run on; of others nothing is said."""

from __future__ import annotations

import re
from dataclasses import dataclass

KIND = re.compile(
    r"(?P<family>(?P<line>[a-z]+)(?P<generation>\d)(?P<more>[a-z]*))\.(?P<size>\d*)xlarge"
)
GPUS = {
    # By how many times "xlarge" a type is; 0 is every other size.
    "g4ad": {0: 1, 8: 2, 16: 4},
    "g4dn": {0: 1, 12: 4},
    "g5": {0: 1, 12: 4, 24: 4, 48: 8},
    "g5g": {0: 1, 16: 2},
    "g6": {0: 1, 12: 4, 24: 4, 48: 8},
    "g6e": {0: 1, 12: 4, 24: 4, 48: 8},
    "gr6": {0: 1},
    "p3": {2: 1, 8: 4, 16: 8},
    "p3dn": {24: 8},
    "p4d": {24: 8},
    "p4de": {24: 8},
    "p5": {4: 1, 48: 8},
    "p5e": {48: 8},
    "p5en": {48: 8},
}
GIB_PER_CPU = {"c": 2, "m": 4, "r": 8, "g4dn": 4, "g5": 4, "g6": 4, "g6e": 8, "gr6": 8}
"""By family, or else by line."""
SINCE = 5
"""The generation of the lines c, m and r from which each "xlarge" is four CPUs."""


@dataclass(frozen=True)
class Size:
    """What a machine has."""

    cpus: int
    gpus: int
    gib: int | None
    """Memory; None where the name does not say."""
    arm: bool


def size_of(kind: str) -> Size | None:
    """Return what an instance type has; None for one that is not known here."""
    match = KIND.fullmatch(kind)
    if match is None:
        return None
    family, line, times = match["family"], match["line"], int(match["size"] or 1)
    plain = line in ("c", "m", "r") and int(match["generation"]) >= SINCE
    table = {0: 0} if plain else GPUS.get(family, {})
    gpus = table.get(times, table.get(0))
    if gpus is None:
        return None
    per_cpu = GIB_PER_CPU.get(family, GIB_PER_CPU.get(line) if plain else None)
    gib = None if per_cpu is None else 4 * times * per_cpu
    return Size(4 * times, gpus, gib, match["more"].startswith("g"))
