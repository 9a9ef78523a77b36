"""All kinds of events, and the way from a stored event to its type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import msgspec

from raymat.storage.fields import Count, Time, parse_fields
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

_FRAME: dict[str, Any] = {"time": Time, "attempt": Count | None, "writer": str, "kind": str}
"""What the log adds to an event."""


def _shape(name: str, own: dict[str, Any]) -> type:
    """Return a type with these fields and the frame's, each of which may be missing."""
    return msgspec.defstruct(name, [(field, hint, None) for field, hint in (_FRAME | own).items()])


_SHAPES = {
    kind: _shape(
        cls.__name__,
        {field.name: get_type_hints(cls, include_extras=True)[field.name] for field in fields(cls)},
    )
    for kind, cls in KINDS.items()
}
_ANY_SHAPE = _shape("AnyEvent", {})


def is_typed(stored: Mapping[str, Any]) -> bool:
    """Return whether all fields of a stored event that this version knows are of their types; it may lack some."""
    kind = stored.get("kind")
    try:
        parse_fields(_SHAPES.get(kind, _ANY_SHAPE) if isinstance(kind, str) else _ANY_SHAPE, stored)
    except ValueError:
        return False
    return True


def tells(stored: Mapping[str, Any], needed: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether a stored event is of a kind in `needed`, and has the fields that it is needed for.

    It may be of a version that did not write them.
    """
    fields_needed = needed.get(str(stored.get("kind")))
    return fields_needed is not None and all(stored.get(f) is not None for f in fields_needed)


def parse_event(stored: Mapping[str, Any]) -> Event | None:
    """Return a stored event as its type; None for a kind, or for fields, of another version.

    Fields that the type does not know are left out.
    """
    cls = KINDS.get(str(stored.get("kind")))
    if cls is None:
        return None
    try:
        return parse_fields(cls, stored)
    except ValueError:
        return None
