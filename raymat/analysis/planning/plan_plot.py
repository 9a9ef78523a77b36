"""Draws plans for several numbers of workers.

With Pillow, which is required anyway: three rows of bars are no reason for matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from raymat.analysis.planning.advice import Plan, Spread

ROW, NAME, BAR, VALUE, MARGIN = 18, 90, 300, 190, 14
"""Pixels: height of a row, width of its name, of its bar, of its value, and around everything."""
INK, GREY, FILL, RANGE = (30, 34, 38), (110, 118, 126), (140, 190, 160), (20, 96, 62)


def draw_plans(plans: Sequence[Plan], title: str) -> bytes:
    """Encode a PNG: hours, goodput and cost as bars, with a line for what nine of ten draws lie between."""
    panels: list[tuple[str, Callable[[Plan], Spread | None], str]] = [
        ("hours", lambda plan: plan.hours, "{:.2f}"),
        ("goodput", lambda plan: plan.goodput, "{:.1%}"),
        ("cost", lambda plan: plan.cost, "{:.2f}"),
    ]
    panels = [panel for panel in panels if any(panel[1](plan) for plan in plans)]
    width = NAME + BAR + VALUE + 2 * MARGIN
    height = 2 * MARGIN + ROW * (1 + len(panels) * (len(plans) + 2))
    image = Image.new("RGB", (width, height), (255, 255, 255))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    draw.text((MARGIN, MARGIN), title, INK, font)
    y = MARGIN + 2 * ROW
    for name, value, form in panels:
        draw.text((MARGIN, y), name, INK, font)
        y += ROW
        shown = [(plan, spread) for plan in plans if (spread := value(plan)) is not None]
        most = max(spread.high for _, spread in shown) or 1.0
        for plan, spread in shown:
            _row(draw, y, plan, spread, most, form)
            y += ROW
        y += ROW
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _row(
    draw: ImageDraw.ImageDraw, y: int, plan: Plan, spread: Spread, most: float, form: str
) -> None:
    font, left = ImageFont.load_default(12), MARGIN + NAME
    setting = plan.setting
    draw.text((MARGIN, y), f"{setting.low}:{setting.high} workers"[:14], GREY, font)
    low, median, high = (left + BAR * v / most for v in (spread.low, spread.median, spread.high))
    draw.rectangle((left, y + 3, max(left + 1, median), y + ROW - 4), FILL)
    middle = y + ROW / 2 - 1
    draw.line((low, middle, high, middle), RANGE, 2)
    text = " ".join(
        (form.format(spread.median), f"({form.format(spread.low)} to {form.format(spread.high)})")
    )
    draw.text((left + BAR + 8, y), text, INK, font)
