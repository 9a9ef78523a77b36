"""`raymat events`: what happened to a run, in words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from raymat.analysis.event_words import line_of
from raymat.config.command_line import parse_options
from raymat.config.hints import closest
from raymat.config.options import Spelling, Url, at_least
from raymat.config.values import Duration
from raymat.console import count
from raymat.errors import ConfigError
from raymat.train.observability.event_kinds import KINDS
from raymat.train.run.run_url import open_run_url, read_run_events


@dataclass(frozen=True, kw_only=True)
class Options:
    """Tell what happened to a run, oldest first: time (UTC), attempt, who wrote it, and what happened.

    docs/events.md lists all kinds with their fields. Exit code: 0, or 2 if there is no such run.
    """

    url: Url
    """The run: STORAGE/NAME, any fsspec URL."""
    kind: Annotated[str | None, Spelling("A,B")] = None
    """Only of these kinds, as in commit,failure."""
    attempt: Annotated[int | None, at_least(1)] = None
    """Only of this attempt."""
    since: Duration | None = None
    """Only of the last TIME, as in 2h."""
    json: bool = False
    """Print the events as they are stored, a JSON object a line."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat events URL` and return the exit code. Raises RaymatError for what the user can mend."""
    options = parse_options(Options, argv, "raymat events")
    kinds = _kinds(options.kind)
    store = open_run_url(options.url)
    events = read_run_events(store)
    shown = list(_chosen(events, kinds, options))
    for event in shown:
        print(json.dumps(event) if options.json else line_of(event))
    if not options.json:
        print(f"{count(len(shown), 'event')} of {len(events)}")
    return 0


def _kinds(text: str | None) -> frozenset[str]:
    """Return the kinds that are asked for, none for all. Raises ConfigError for one that no event has."""
    kinds = frozenset(filter(None, map(str.strip, (text or "").split(","))))
    otherwise = "docs/events.md lists all kinds"
    for kind in kinds - KINDS.keys():
        raise ConfigError(f"--kind: no event is of kind {kind!r}{closest(kind, KINDS, otherwise)}")
    return kinds


def _chosen(
    events: Sequence[Mapping[str, Any]], kinds: frozenset[str], options: Options
) -> Iterator[Mapping[str, Any]]:
    first = 0.0 if options.since is None else time.time() - options.since.seconds
    for event in events:
        wanted = not kinds or event.get("kind") in kinds
        wanted = wanted and options.attempt in (None, event.get("attempt"))
        if wanted and event.get("time", 0.0) >= first:
            yield event
