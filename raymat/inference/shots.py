"""What is matted: shots, each a picture with its background, and where they come from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from raymat.data.decode import Pixels

Wanted = Callable[[str], bool]
"""Whether the shot of this name is still to be matted."""


@dataclass(frozen=True, eq=False)
class Shot:
    """A picture to matte, and its background in the same size: uint8 RGB (h, w, 3), upright and sRGB."""

    name: str
    """Of its outputs, without ending: "holiday/beach", or a frame's number as "000012"."""
    shown: str
    """For messages: "clip.mp4, frame 12"."""
    source: Pixels
    background: Pixels
    time: Fraction = Fraction(0)
    """Seconds after the first frame; 0 for pictures."""
    duration: Fraction = Fraction(0)
    """Seconds for which a frame is shown; 0 where that is not known."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.source.shape[0], self.source.shape[1]


@dataclass(frozen=True)
class Timing:
    """A video's clock."""

    base: Fraction
    """Seconds that one tick of its timestamps is long."""
    rate: Fraction
    """Frames a second, on average."""
    aspect: Fraction = Fraction(1)
    """Width of a pixel by its height, as shown."""


class Footage(Protocol):
    """Shots of one source, in order."""

    @property
    def names(self) -> list[str] | None:
        """The shots' names; None if only reading shows how many there are."""
        ...

    @property
    def count(self) -> int:
        """Number of shots; of a video as its header says, or 0."""
        ...

    @property
    def timing(self) -> Timing | None:
        """A video's clock; None for pictures."""
        ...

    def shots(self, wanted: Wanted) -> Iterator[Shot]:
        """Yield the wanted shots in order, read ahead in threads. Raises DataError for what cannot be read."""
        ...


class Notes:
    """What the user should know although the work goes on: each kind is told once, with its first case and their number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cases: dict[str, list[str]] = {}

    def add(self, kind: str, case: str = "") -> None:
        """Note a case of a kind; threads may call it."""
        with self._lock:
            self._cases.setdefault(kind, []).append(case)

    @property
    def lines(self) -> list[str]:
        """One line for each kind."""
        return [_line(kind, cases) for kind, cases in self.found.items()]

    @property
    def found(self) -> Mapping[str, list[str]]:
        """The cases of each kind."""
        return self._cases


def _line(kind: str, cases: list[str]) -> str:
    more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
    return f"{cases[0]}{more}: {kind}" if cases[0] else kind
