"""Where a curve flattens, as pure functions of its points."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from raymat.config.sections import Mode

WINDOW_PART = 1 / 5
"""Of a curve's length: the window where none is given."""
THRESHOLD = 0.05
"""The relative improvement per window below which a curve counts as flat."""


@dataclass(frozen=True)
class Point:
    """A value after so many completed steps, that is after so many examples."""

    step: int
    examples: float
    value: float


@dataclass(frozen=True)
class Plateau:
    """What is known of a curve's end. `window`: in examples, as it was used."""

    start: int | None
    """Index of the point at which the last plateau begins; None where there is none."""
    window: float
    reason: str = ""
    """Why there is none."""


def find_plateau(
    points: Sequence[Point],
    *,
    window: float | None = None,
    threshold: float = THRESHOLD,
    mode: Mode = "min",
) -> Plateau:
    """Where the plateau begins in which the curve ends.

    The values are smoothed (the median of three neighbours, which a single odd validation does not move) and turned
    into the best so far. From a point, the gain is by what part of itself this best improves within the next `window`
    examples (default: a fifth of the curve); a point with less than a window after it has none yet. The plateau begins
    at the first point from which on every gain is below `threshold`. So a plateau that the curve leaves again does not
    count, and a curve that still falls at its end has none.

    `points`: by examples. All values finite.
    """
    span = points[-1].examples - points[0].examples if points else 0.0
    window = span * WINDOW_PART if window is None else window
    gains = _gains(points, window, mode) if span > 0 else []
    if not gains:
        what = f"{len(points)} point{'' if len(points) == 1 else 's'} over {span:.0f} examples"
        return Plateau(None, window, f"the curve is too short: {what}, the window is {window:.0f}")
    flat = list(itertools.takewhile(lambda gain: gain < threshold, reversed(gains)))
    if not flat:
        told = f"the curve still improves, by {gains[-1]:.1%} in its last {window:.0f} examples"
        return Plateau(None, window, f"{told}: train on")
    return Plateau(len(gains) - len(flat), window)


def binned(points: Sequence[Point], bins: int = 50) -> list[Point]:
    """The means over at most `bins` equal stretches of the curve, each at its last point."""
    size = max(1, math.ceil(len(points) / bins))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        Point(g[-1].step, g[-1].examples, math.fsum(p.value for p in g) / len(g)) for g in groups
    ]


def _gains(points: Sequence[Point], window: float, mode: Mode) -> list[float]:
    """For each point with a whole window after it, what part of the best so far is gained in it."""
    best = _best_so_far(points, mode)
    found = []
    points = points[: len(best)]
    for i, point in enumerate(points):
        later = next(
            (j for j in range(i + 1, len(points)) if points[j].examples >= point.examples + window),
            None,
        )
        if later is None:
            break
        gain = abs(best[later] - best[i])
        # The next point may lie beyond the window: what was gained is spread over the way there.
        way = points[later].examples - point.examples
        found.append(gain / max(abs(best[i]), 1e-300) * (window / way if way else 1.0))
    return found


def _best_so_far(points: Sequence[Point], mode: Mode) -> list[float]:
    """Of the last point, which has one neighbour only, nobody can say whether it is odd: it has none of its own."""
    values = [point.value for point in points]
    if len(values) > 2:
        middle = [statistics.median(values[i - 1 : i + 2]) for i in range(1, len(values) - 1)]
        values = [values[0], *middle]
    return list(itertools.accumulate(values, min if mode == "min" else max))
