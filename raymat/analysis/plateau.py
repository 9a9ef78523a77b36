"""Finds where a curve flattens, by pure functions of its points."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from raymat.config.sections import Mode

WINDOW_PART = 1 / 5
"""Default window, as a part of the curve's length."""
THRESHOLD = 0.05
"""Relative improvement per window below which a curve counts as flat."""


@dataclass(frozen=True)
class Point:
    """A value after `step` completed steps, which is after `examples` examples."""

    step: int
    examples: float
    value: float


@dataclass(frozen=True)
class Plateau:
    """The plateau in which a curve ends, if it does. `window`: the one used, in examples."""

    start: int | None
    """Index of the point where the plateau begins; None if there is none."""
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
    """Find where the plateau begins in which the curve ends.

    The values are smoothed by the median of three neighbours, which a single odd validation does not move, and turned
    into the best so far. The gain at a point is the relative improvement of this best within the next `window` examples
    (default: a fifth of the curve); a point with less than a window after it has no gain yet. The plateau begins at the
    first point after which every gain is below `threshold`. So a plateau that the curve leaves again does not count,
    and a curve that still improves at its end has none.

    `points`: ordered by examples, all values finite.
    """
    span = points[-1].examples - points[0].examples if points else 0.0
    window = span * WINDOW_PART if window is None else window
    gains = _gains(points, window, mode) if span > 0 else []
    if not gains:
        what = f"{len(points)} point{'' if len(points) == 1 else 's'} over {span:.0f} examples"
        return Plateau(None, window, f"the curve is too short: {what}, the window is {window:.0f}")
    flat = list(itertools.takewhile(lambda gain: gain < threshold, reversed(gains)))
    if not flat:
        reason = f"the curve still improves, by {gains[-1]:.1%} in its last {window:.0f} examples"
        return Plateau(None, window, f"{reason}: train on")
    return Plateau(len(gains) - len(flat), window)


def binned(points: Sequence[Point], bins: int = 50) -> list[Point]:
    """Average the curve over at most `bins` equal stretches, each placed at its last point."""
    size = max(1, math.ceil(len(points) / bins))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [
        Point(g[-1].step, g[-1].examples, math.fsum(p.value for p in g) / len(g)) for g in groups
    ]


def _gains(points: Sequence[Point], window: float, mode: Mode) -> list[float]:
    """Return the gain of each point that has a whole window after it, relative to the best so far."""
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
    """Return the smoothed best so far; not for the last point, which has one neighbour only and may be odd."""
    values = [point.value for point in points]
    if len(values) > 2:
        middle = [statistics.median(values[i - 1 : i + 2]) for i in range(1, len(values) - 1)]
        values = [values[0], *middle]
    return list(itertools.accumulate(values, min if mode == "min" else max))
