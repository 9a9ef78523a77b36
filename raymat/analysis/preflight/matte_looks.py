"""What the mattes that were looked at are likely to be, counted: one odd frame is none, a tenth of them is a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np

from raymat.analysis.preflight.findings import EXAMPLES, Finding
from raymat.data.decode import OpenImage, Pixels, Scale, shrink
from raymat.data.decoding.cut_out import have_one_colour
from raymat.data.matte_statistics import LIKELY, MatteStatistics, judge

SHRUNK: Scale = 2
"""Scale at which foregrounds are compared with their mattes."""
_BARE = "have foregrounds of one colour where they are transparent, which mixes into their edges"
_BARE_ADVICE = (
    "leave the picture's own colours there, or make them RGBA files, whose colours are continued"
)
_LEAST_BARE = 1 / 16
"""Share of a frame that is transparent from which on its colours there are judged."""
_FRAMES, _FRAMES_SHARE = {"empty", "void", "full", "faint", "hard"}, 0.1
"""What frames without a person look like, or with one who fills them, and the share of the mattes up to which that is a fact
and no warning."""


def looks_of(fgr: OpenImage, pha: OpenImage) -> tuple[str, ...]:
    """Decode a pair, and return what its matte is likely to be, as keys of `LIKELY`, and "bare". Raises UnreadableImage."""
    colours, matte = fgr.decode(SHRUNK), pha.decode()
    small = shrink(matte, SHRUNK)
    looks = judge(MatteStatistics.of(matte, depth=pha.depth).beside(colours, small))
    return (*looks, "bare") if _is_bare(colours, small) else looks


def _is_bare(colours: Pixels, matte: Pixels) -> bool:
    """Return whether a foreground has one colour where its matte is 0, and others where it is not."""
    hidden = cv2.dilate(matte, np.ones((3, 3), np.uint8)) == 0  # no edge is among them
    return bool(
        _LEAST_BARE < hidden.mean() < 1
        and have_one_colour(colours, hidden)
        and not have_one_colour(colours, colours[..., 0] >= 0)
    )


@dataclass
class MatteTally:
    """Counts of what mattes look like, with the first examples of each."""

    total: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, looks: tuple[str, ...], path: str) -> None:
        """Count one matte."""
        self.total += 1
        self.counts.update(looks)
        for look in looks:
            self.examples.setdefault(look, [])
            if len(self.examples[look]) < EXAMPLES:
                self.examples[look].append(path)

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each thing that mattes look like, the most frequent first."""
        for look, count in self.counts.most_common():
            more = ["..."] if count > EXAMPLES else []
            rare = look in _FRAMES and count <= max(1, self.total * _FRAMES_SHARE) < self.total
            words = LIKELY.get(look, _BARE)
            yield Finding(
                "note" if rare or words == _BARE else "warning",
                f"{count:,} of {self.total:,} mattes {words}",
                ", ".join([*self.examples[look], *more]),
                advice="" if rare else _BARE_ADVICE if words == _BARE else "look at some",
                data={"look": look, "count": count, "of": self.total},
            )
