"""The whole page: one file that loads nothing, in which nothing that came from storage can run."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from raymat.analysis.report.chart_data import chart_data
from raymat.analysis.report.markup import Html, tag
from raymat.analysis.report.page_parts import clock, comparison, run_sections
from raymat.analysis.report.story import Story
from raymat.version import __version__


def make_page(stories: Sequence[Story], now: float) -> str:
    """Return the page about these runs; `now`: Unix seconds."""
    names = ", ".join(story.summary.name for story in stories)
    scripts = [_asset("uPlot.iife.min.js"), _asset("page.js")]
    # Scripts run by their digests alone: of markup that slipped in, none would.
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {digests}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"raymat: {names}"),
        tag("style", Html(_asset("uPlot.min.css") + _asset("page.css"))),
    )
    made = f"Made {clock(now)} UTC by raymat {__version__}. Charts: uPlot 1.6.32 (MIT licence)."
    body = tag(
        "body",
        *([comparison(stories)] if len(stories) > 1 else []),
        *(run_sections(story, number, now) for number, story in enumerate(stories)),
        tag("footer", made),
        tag("script", _json(chart_data(list(stories))), type="application/json", id="data"),
        *(tag("script", Html(script)) for script in scripts),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _json(content: Any) -> Html:
    """Encode as JSON that ends no script element, whatever is in it."""
    return Html(json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))
