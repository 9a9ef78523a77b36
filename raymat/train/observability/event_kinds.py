"""All kinds of events, and the way from a stored event to its type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from raymat.train.observability import (
    attempt_events,
    checkpoint_events,
    training_events,
    validation_events,
)
from raymat.train.observability.event import Event

KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for module in (attempt_events, training_events, checkpoint_events, validation_events)
    for cls in vars(module).values()
    if isinstance(cls, type) and issubclass(cls, Event) and cls is not Event
}
"""Every kind of event that this version writes."""


def parse_event(stored: Mapping[str, Any]) -> Event | None:
    """Return a stored event as its type; None for a kind, or for fields, of another version.

    Fields that the type does not know are left out. Values are not checked.
    """
    cls = KINDS.get(str(stored.get("kind")))
    if cls is None:
        return None
    try:
        return cls(**{f.name: stored[f.name] for f in fields(cls) if f.name in stored})
    except TypeError:  # it lacks a field
        return None
