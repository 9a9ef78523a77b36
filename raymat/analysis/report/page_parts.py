"""The parts of a page that are text, tables and pictures."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymat.analysis.event_words import words_of
from raymat.analysis.goodput.ledger import CAUSES
from raymat.analysis.goodput.money import bill
from raymat.analysis.goodput.table import WORDS
from raymat.analysis.report.chart_data import MARKED, loudness
from raymat.analysis.report.markup import Html, folded, join, section, table, tag
from raymat.analysis.report.story import Story
from raymat.console import age, count, size
from raymat.storage.urls import redact_text

MOST_EVENTS, MOST_NEWS = 10_000, 100
_LONGEST = 300
"""Characters of an event."""


def run_sections(story: Story, number: int, now: float) -> Html:
    """Return all that is told of one run; `number`: among those of the page. `now`: Unix seconds."""
    s = story.summary
    return tag(
        "article",
        tag("h2", s.name, " ", tag("span", s.state, class_=f"state {s.state}")),
        tag("p", _sentence(story, now), class_="lead"),
        *(tag("p", gap, class_="gap") for gap in story.gaps),
        _cards(story, now),
        _timeline(number),
        section("Where the time went", _causes(story)),
        section("Curves", *(_chart(kind, number) for kind in ("loss", "valid", "speed", "lr"))),
        section("Restarts", _restarts(story)),
        section("What happened", _news(story)),
        section("Checkpoints", _checkpoints(story)),
        section("Pictures", _pictures(story)),
        section("Files that could not be used", _replaced(story)),
        folded("Configuration", _config(story.config)),
        folded(f"All {count(len(story.events), 'event')}", *_events(story)),
        id=f"run-{number}",
    )


def comparison(stories: Sequence[Story]) -> Html:
    """Return several runs beside each other: results, curves, and the options in which they differ."""
    rows = []
    for number, story in enumerate(stories):
        s = story.summary
        name = join([tag("i", class_=f"swatch run{number % 8}"), tag("a", s.name, href=f"#run-{number}")])  # fmt: skip
        steps = f"{s.step} of {s.steps or '?'}"
        results = (s.state, steps, _best(story), _goodput(story), _hours(story))
        rows.append((name, *results, str(len(story.restarts)), _lost(story)))
    head = ("run", "state", "steps", "best", "goodput", "worker hours", "restarts", "steps lost")
    return tag(
        "article",
        tag("h2", "Compared"),
        table(head, rows),
        _chart("loss", None),
        _chart("valid", None),
        _chart("speed", None),
        section("Options in which they differ", _differences(stories)),
    )


def clock(seconds: float) -> str:
    """Format Unix seconds as a date and time (UTC)."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def _sentence(story: Story, now: float) -> str:
    s, events = story.summary, story.events
    starts = [e for e in events if e.get("kind") == "start"]
    ranks = starts[-1].get("ranks") if starts else None
    hosts = sorted({str(r.get("host")) for r in ranks if isinstance(r, dict)}) if ranks else []
    launches = [e for e in events if e.get("kind") == "launch"]
    parts = [f"Stage {s.stage} at {s.url}."]
    if starts:
        where = f" on {', '.join(hosts[:4])}{' and others' if len(hosts) > 4 else ''}"
        parts.append(f"{count(s.workers or 0, 'worker')} ({starts[-1].get('device')}){where}.")
    if events:
        first, last = events[0]["time"], events[-1]["time"]
        parts.append(f"From {clock(first)} to {clock(last)} UTC ({age(last - first)}).")
    if launches:
        parts.append(f"Launched {count(len(launches), 'time')}, last from {launches[-1].get('host')}.")  # fmt: skip
    if s.reason and s.state != "training":
        parts.append(f"It is {s.state}: {redact_text(s.reason)}.")
    return " ".join(parts)


def _cards(story: Story, now: float) -> Html:
    s = story.summary
    committed = "-" if s.committed is None else f"{age(now - s.committed)} before this page"
    values = {
        "steps": (f"{s.step}", f"of {s.steps or '?'}"),
        "goodput": (_goodput(story), f"of {_hours(story)} worker hours"),
        f"best {s.metric}": ("-" if s.best is None else f"{s.best:.4g}", f"step {s.best_step}"),
        "newest commit": (f"{s.step}", committed),
        "restarts": (str(len(story.restarts)), f"{_lost(story)} steps done again"),
    }
    cards = [
        tag("div", tag("small", name), tag("b", value), tag("span", more))
        for name, (value, more) in values.items()
    ]
    return tag("div", *cards, class_="cards")


def _best(story: Story) -> str:
    s = story.summary
    return "-" if s.best is None else f"{s.metric} {s.best:.4g} at {s.best_step}"


def _goodput(story: Story) -> str:
    return "-" if story.summary.goodput is None else f"{story.summary.goodput:.1%}"


def _lost(story: Story) -> str:
    """Return how many steps were done again; of a driver that died nobody knows how far its workers had come."""
    known = sum(restart.lost or 0 for restart in story.restarts)
    whole = all(restart.lost is not None for restart in story.restarts)
    return str(known) if whole else f"{known} or more"


def _hours(story: Story) -> str:
    return f"{story.ledger.slot_seconds / 3600:.2f}"


def _chart(kind: str, number: int | None) -> Html:
    run = {} if number is None else {"data_run": str(number)}
    return tag("div", class_="chart", data_chart=kind, **run)


def _timeline(number: int) -> Html:
    hint = (
        "Drag to zoom, double-click for all. Colours: the table below. Marks above: red faults, orange notices, grey the rest; "
        "below: commits, validations."
    )
    tools = [
        tag("button", text, data_zoom=what, title=title, type="button")
        for what, text, title in (
            ("in", "+", "zoom in"),
            ("out", "−", "zoom out"),
            ("left", "←", "earlier"),
            ("right", "→", "later"),
            ("all", "all", "show all"),
        )
    ]
    return section(
        "Timeline",
        tag("div", *tools, class_="tools"),
        _chart("time", number),
        tag("div", hint, class_="said"),
        _chart("steps", number),
    )


def _causes(story: Story) -> Html:
    total = story.ledger.slot_seconds
    paid = None if story.prices is None else bill(story.ledger, story.prices)
    rows = []
    for cause, seconds in sorted(story.ledger.by_cause.items(), key=lambda item: -item[1]):
        share = seconds / total
        drawn = tag("div", class_=f"bar c{CAUSES.index(cause)}", style=f"width:{share * 100:.2f}%")
        name = join([tag("i", class_=f"swatch c{CAUSES.index(cause)}"), cause])
        cost = [f"{paid.by_cause[cause]:.2f}" if cause in paid.by_cause else "-"] if paid else []
        figures = (name, f"{share:.1%}", f"{seconds / 3600:.3f} h")
        rows.append((*figures, *cost, tag("div", drawn, class_="track"), WORDS[cause]))
    head = ("time of all workers", "share", "", *(["cost"] if paid else []), "", "")
    return join([table(head, rows), *([tag("p", paid.words)] if paid else [])])


def _restarts(story: Story) -> Html:
    rows = [
        (
            clock(r.at),
            str(r.attempt),
            str(r.world),
            "-" if r.lost is None else str(r.lost),
            "-" if r.total is None else f"{r.total:.1f} s",
            redact_text(r.why),
        )
        for r in story.restarts[-MOST_NEWS:]
    ]
    return table(("when (UTC)", "attempt", "workers", "steps lost", "took", "why"), rows)


def _news(story: Story) -> Html:
    news = [e for e in story.events if e.get("kind") in MARKED or e.get("best")]
    return _event_table(news[-MOST_NEWS:])


def _events(story: Story) -> Iterator[Html]:
    if story.events:
        yield tag("input", type="search", class_="find", placeholder="only those that contain ...")
        yield _event_table(story.events[-MOST_EVENTS:])
    if len(story.events) > MOST_EVENTS:
        yield tag("p", f"The newest {MOST_EVENTS}; raymat events {story.summary.url} has all.")


def _event_table(events: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        (
            clock(event["time"]),
            str(event.get("attempt") or ""),
            str(event.get("writer", "")).replace("rank-0000", "rank "),
            tag("span", words_of(event)[:_LONGEST], class_=loudness(event)),
        )
        for event in events
    ]
    return table(("when (UTC)", "attempt", "by", "what"), rows)


def _checkpoints(story: Story) -> Html:
    found = story.checkpoints
    if found is None:
        return Html("")
    rows = [
        (
            str(row.step),
            str(row.attempt),
            str(row.world or "-"),
            size(row.bytes),
            "-" if row.age is None else age(row.age),
            "-" if row.value is None else f"{row.value:.4g}",
            row.state
            + (f": {row.reason}" if row.reason else "")
            + (", the best" if row.best else ""),
        )
        for row in found.rows
    ]
    return table(("step", "attempt", "world", "size", "age", found.metric, "state"), rows)


def _pictures(story: Story) -> Html:
    step, pictures = story.pictures
    figures = [
        tag(
            "figure",
            tag("img", src="data:image/jpeg;base64," + base64.b64encode(jpeg).decode(), alt=name),
            tag("figcaption", f"{name}, step {step}"),
        )
        for name, jpeg in pictures.items()
    ]
    return tag("div", *figures, class_="pictures") if figures else Html("")


def _replaced(story: Story) -> Html:
    found = {str(e.get("path")): e for e in story.events if e.get("kind") == "replaced"}
    rows = [(path, redact_text(str(e.get("reason")))) for path, e in list(found.items())[:500]]
    return table(("file", "why"), rows)


def _config(config: Mapping[str, Any]) -> Html:
    rows = [(name, redact_text(str(value), 500)) for name, value in config.items()]
    return table(("option", "value"), rows)


def _differences(stories: Sequence[Story]) -> Html:
    names = {name: None for story in stories for name in story.config}
    missing = object()
    rows = []
    for name in names:
        values = [story.config.get(name, missing) for story in stories]
        if name not in ("name", "storage") and any(value != values[0] for value in values):
            shown = ("-" if v is missing else redact_text(str(v)) for v in values)
            rows.append((name, *shown))
    return table(("option", *(story.summary.name for story in stories)), rows)
