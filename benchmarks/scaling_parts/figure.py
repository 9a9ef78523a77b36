"""The figure: efficiency over the number of workers, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

LEFT, TOP, WIDTH, HEIGHT = 56, 24, 460, 250
"""Pixels: where the axes are."""
COLOURS = ("#0f766e", "#d97706", "#3b6fb6", "#b42318")
STYLE = """<style>
  .panel { fill: #ffffff; } text { font: 13px system-ui, sans-serif; fill: #24292f; } .dim { fill: #57606a; font-size: 12px; }
  .axis { stroke: #c9ced6; } .curve { fill: none; stroke-width: 2.5; }
  @media (prefers-color-scheme: dark) {
    .panel { fill: #1e2129; } text { fill: #e6e8ec; } .dim { fill: #a4abb8; } .axis { stroke: #454b57; }
  }
</style>"""


def draw(curves: Mapping[str, Sequence[tuple[int, float]]], title: str) -> str:
    """Return the SVG of curves by name: numbers of workers, a share of 1 for each."""
    most = max(workers for points in curves.values() for workers, _ in points)
    span = math.log2(most)

    def place(workers: int, share: float) -> tuple[float, float]:
        return LEFT + WIDTH * math.log2(workers) / span, TOP + HEIGHT * (1 - share)

    right, bottom = place(most, 0.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 330" role="img" aria-label="{title}">',
        STYLE,
        '<rect class="panel" width="720" height="330" rx="10"/>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = place(1, share)[1]
        parts.append(f'<path class="axis" d="M{LEFT} {y:.0f}H{right:.0f}"/>')
        parts.append(
            f'<text class="dim" x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{share:.0%}</text>'
        )
    for power in range(int(span) + 1):
        x = place(2**power, 0.0)[0]
        parts.append(
            f'<text class="dim" x="{x:.0f}" y="{bottom + 18:.0f}" text-anchor="middle">{2**power}</text>'
        )
    parts.append(
        f'<text class="dim" x="{right:.0f}" y="{bottom + 38:.0f}" text-anchor="end">workers</text>'
    )
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline class="curve" stroke="{colour}" points="{way}"/>')
        y = TOP + 12 + 22 * number
        parts.append(f'<path class="curve" stroke="{colour}" d="M{right + 16:.0f} {y - 4}h22"/>')
        parts.append(f'<text x="{right + 44:.0f}" y="{y}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])
