"""A run's events in words, one line each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from raymat.console import count, printable, size
from raymat.train.observability.event_kinds import parse_event

_COMMON = ("time", "attempt", "writer", "kind")
"""Fields that every event has."""


def words_of(event: Mapping[str, Any]) -> str:
    """Return what a stored event says: the line that a driver prints, if its kind has one, else a sentence with its fields.

    An event of a kind or with fields that this version does not know is shown by its kind and its fields, as JSON. Characters
    that steer a terminal are escaped.
    """
    return printable(_words(event))


def _words(event: Mapping[str, Any]) -> str:
    parsed = parse_event(event)
    sentence = _SENTENCES.get(str(event.get("kind")))
    try:
        if parsed is not None and (line := parsed.line) is not None:
            return line
        if parsed is not None and sentence is not None:
            return sentence(event)
    except (KeyError, TypeError, ValueError, AttributeError):  # values of another version
        pass
    fields = {name: value for name, value in event.items() if name not in _COMMON}
    return f"{event.get('kind')} {json.dumps(fields)}"


def line_of(event: Mapping[str, Any]) -> str:
    """Return an event as a line: its time (UTC), its attempt, who wrote it, and its words."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event.get("time", 0.0)))
    attempt = event.get("attempt")
    place = "" if attempt is None else f"attempt {attempt}"
    return f"{when}  {place:<11} {printable(_writer(str(event.get('writer', '')))):<8} {words_of(event)}"


def _writer(name: str) -> str:
    kind, _, number = name.partition("-")
    return f"{kind} {int(number)}" if kind and number.isdigit() else name


def _ended(e: Mapping[str, Any]) -> str:
    if e["outcome"] == "complete":
        return f"the run is complete after step {e['step']}: {e['reason']}"
    return f"this worker {'left' if e['outcome'] == 'left' else 'failed'}: {e['error']}"


def _failed(e: Mapping[str, Any]) -> str:
    return "workers failed: " + "; ".join(f"rank {rank}: {why}" for rank, why in e["ranks"].items())


def _validated(e: Mapping[str, Any]) -> str:
    values = {"loss": e["loss"], **e["metrics"]}
    shown = ", ".join(f"{name} {_number(value)}" for name, value in values.items())
    return f"validated step {e['step']} in {e['seconds']:.1f} s ({e['place']}): {shown}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _started(e: Mapping[str, Any]) -> str:
    hosts = sorted({worker["host"] for worker in e["ranks"]})
    return f"{count(e['world'], 'worker')} started on {', '.join(hosts)} ({e['device']})"


_SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "launch": lambda e: (
        f"process {e['pid']} on {e['host']} drives the run"
        + ("; the previous driver died" if e.get("heard") else "")
    ),
    "grow": lambda e: (
        "the dataset has grown: "
        + ", ".join(f"{number} {kind}" for kind, number in e["added"].items())
        + f", used from example {e['from_example']} on"
    ),
    "start": _started,
    "interval": lambda e: (
        f"a checkpoint every {count(e['interval'], 'step')} from here on: it stops training for {e['stall']:.3f} s and takes "
        f"{e['save']:.1f} s, and a loss without notice comes every {e['every'] / 3600:.1f} h"
    ),
    "end": _ended,
    "room": lambda e: (
        f"there is room for {count(e['workers'], 'worker')}; the run needs at least {e['least']}"
    ),
    "notice_withdrawn": lambda e: f"notice withdrawn after step {e['step']}: {e['reason']}",
    "failure": _failed,
    "first_step": lambda e: (
        f"step {e['step']} is done, the first of this attempt, {e['seconds']:.1f} s after its start"
    ),
    "commit": lambda e: (
        f"{e['checkpoint']} is committed after {e['seconds']:.1f} s, {size(e['bytes'])} a worker; "
        f"training stood still for {e['stall'] * 1000:.0f} ms"
    ),
    "delete": lambda e: f"removed {', '.join(e['checkpoints'])}: no longer kept",
    "save_skipped": lambda e: (
        f"no save after step {e['step']}: earlier ones are still on their way"
    ),
    "nearby_damaged": lambda e: (
        f"the copy of {e['checkpoint']}/{e['file']} on this machine is damaged: {e['reason']}"
    ),
    "nearby_off": lambda e: f"no copies of checkpoints on this machine any more: {e['reason']}",
    "validation": _validated,
    "validation_begun": lambda e: f"the validation of step {e['step']} begins on {e['place']}",
    "validation_runs": lambda e: f"the validation of step {e['step']} runs: {e['who']}",
    "validation_found": lambda e: (
        f"the result of step {e['step']}'s validation is in storage, after {e['seconds']:.1f} s"
    ),
    "validation_in_loop": lambda e: (
        f"the workers validate step {e['step']} themselves: {e['reason']}"
    ),
}
"""By kind, for those that the driver does not print."""

SENTENCES = frozenset(_SENTENCES)
"""Kinds that have a sentence here."""
