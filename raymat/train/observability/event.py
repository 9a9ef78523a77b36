"""The base of all events, and the types of the fields that many of them share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

from raymat.storage.fields import Count

Step = Annotated[Count, "completed steps"]
Rank = Annotated[Count, "the worker's number, from 0"]
Checkpoint = Annotated[str, "its folder's name, as in step-000000120-a003"]
DataWait = Annotated[
    float | None,
    "s that steps have waited for data in this attempt, after the first: the worker that waited longest",
]
Reason = Annotated[str, "why, for people"]
ErrorLine = Annotated[str, "the error in one line"]


Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a run: a kind, and fields that JSON can hold.

    A field without a default is always written; one with a default only where it has another value.
    """

    kind: ClassVar[str]
    level: ClassVar[Level] = "info"
    """Of its line."""

    @property
    def line(self) -> str | None:
        """The event as a line for whoever watches the driver; None for one that only the log keeps."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as its log has it: the kind, then the fields in the order of the class."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        written = {f.name: values[f.name] for f in fields(self) if values[f.name] != f.default}
        return {"kind": self.kind} | written
