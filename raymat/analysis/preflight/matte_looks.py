"""What the mattes that were looked at are likely to be, counted: one odd frame is none, a tenth of them is a mistake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from raymat.analysis.preflight.findings import EXAMPLES, Finding
from raymat.data.decode import OpenImage, Scale, shrink
from raymat.data.matte_statistics import LIKELY, MatteStatistics, judge

SHRUNK: Scale = 2
"""Scale at which foregrounds are compared with their mattes."""
_FRAMES, _FRAMES_SHARE = {"empty", "full", "faint", "hard"}, 0.1
"""What frames without a person look like, or with one who fills them, and the share of the mattes up to which that is a fact
and no warning."""


def looks_of(fgr: OpenImage, pha: OpenImage) -> tuple[str, ...]:
    """Decode a pair, and return what its matte is likely to be, as keys of `LIKELY`. Raises UnreadableImage."""
    colours, matte = fgr.decode(SHRUNK), pha.decode()
    return judge(MatteStatistics.of(matte, depth=pha.depth).beside(colours, shrink(matte, SHRUNK)))


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
            yield Finding(
                "note" if rare else "warning",
                f"{count:,} of {self.total:,} mattes {LIKELY[look]}",
                ", ".join([*self.examples[look], *more]),
                advice="" if rare else "look at some",
                data={"look": look, "count": count, "of": self.total},
            )
