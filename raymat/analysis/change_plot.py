"""Draws how far each layer of a network has moved.

Drawn with Pillow, which is required anyway and imports in 10 ms: bars and labels are no reason for matplotlib.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from raymat.analysis.layer_changes import LayerChange

ROW, TOP, LABEL, BARS, MARGIN = 15, 64, 300, 560, 12
"""Pixels: height of a row, above the first row, width of the names, width of the bars, around everything."""
COLOURS = {
    "backbone": (31, 119, 180),
    "aspp": (255, 127, 14),
    "decoder": (44, 160, 44),
    "refiner": (214, 39, 40),
}
OTHER, INK, GRID = (127, 127, 127), (0, 0, 0), (221, 221, 221)


def draw_changes(layers: Sequence[LayerChange], *title: str) -> bytes:
    """Encode a PNG with a bar for each layer: |B - A| / |A| of its weights, on a logarithmic scale."""
    content = io.BytesIO()
    picture(layers, *title).save(content, "PNG")
    return content.getvalue()


def picture(layers: Sequence[LayerChange], *title: str) -> Image.Image:
    """Draw the picture that `draw_changes` encodes."""
    low, high = decades(layers)
    height = TOP + ROW * max(1, len(layers)) + MARGIN
    image = Image.new("RGB", (LABEL + BARS + 2 * MARGIN, height), (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    left = MARGIN + LABEL
    for number, line in enumerate(
        (*title, "relative change of each layer's weights, |B - A| / |A|")
    ):
        draw.text((MARGIN, 4 + 14 * number), line, INK, font)
    for decade in range(low, high + 1):
        x = left + BARS * (decade - low) / (high - low)
        draw.line((x, TOP - 4, x, height - MARGIN), GRID)
        draw.text((x, TOP - 6), f"1e{decade}", INK, font, anchor="ms")
    for row, layer in enumerate(layers):
        y = TOP + ROW * row
        draw.text((MARGIN, y + 1), _shortened(layer.name), INK, font)
        words = _instead_of_a_bar(layer)
        if words:
            draw.text((left + 2, y + 1), words, INK, font)
            continue
        share = (math.log10(layer.relative) - low) / (high - low)
        colour = COLOURS.get(layer.name.split(".")[0], OTHER)
        draw.rectangle((left, y + 2, left + max(1.0, BARS * share), y + ROW - 3), colour)
    return image


def decades(layers: Sequence[LayerChange]) -> tuple[int, int]:
    """Return the powers of ten between which all bars end, at least one apart."""
    found = [math.log10(layer.relative) for layer in layers if not _instead_of_a_bar(layer)]
    if not found:
        return -1, 0
    # A decade below the smallest, so that its bar can be seen.
    low, high = math.ceil(min(found)) - 1, math.ceil(max(found))
    return low, max(high, low + 1)


def _instead_of_a_bar(layer: LayerChange) -> str:
    if layer.only_a + layer.only_b == layer.tensors:
        return "only in A" if layer.only_a else "only in B"
    if layer.relative == 0:
        return "equal" if not layer.differ else "of another shape"
    return "" if math.isfinite(layer.relative) else "not finite"


def _shortened(name: str) -> str:
    return name if len(name) <= 46 else f"{name[:20]}...{name[-23:]}"
