"""A run's events as they come: what is new is read, the rest is remembered."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from raymat.storage.bulk import read_many, until_present
from raymat.storage.store import FileInfo, Store
from raymat.train.observability.event_kinds import is_typed
from raymat.train.observability.events import FOLDER

MOST_BYTES = 32 * 2**20
"""Of a run's events that are read, the newest first: some 150,000 events."""
_END_OF_TIME = 1e11
"""In Unix seconds: what comes after it is no time, and no calendar has it."""


class EventReader:
    """Reads a run's events again and again, each object only when it is new or has grown."""

    def __init__(self, store: Store, most_bytes: int = MOST_BYTES) -> None:
        """`most_bytes`: beyond them older objects are left out."""
        self._store, self._most = store, most_bytes
        self._objects: dict[str, tuple[FileInfo, bytes]] = {}
        self._known: dict[bytes, dict[str, Any] | None] = {}
        self.events: list[dict[str, Any]] = []
        """What was read so far, oldest first, without lines that are damaged or have no time."""
        self.whole = True
        """Whether these are all; False where there are too many to read."""
        self.damaged = 0
        """Lines that are left out of `events`."""
        self.modified = 0.0
        """When the newest object was written, in Unix seconds by the storage's clock; 0 if unknown."""

    def refresh(self) -> bool:
        """Read what is new; return whether anything is. One listing, and a read for each object that has changed.

        Raises:
            StorageError: the storage cannot be read.
        """
        objects = until_present(self._read_objects)
        if objects.keys() == self._objects.keys() and all(
            objects[path][0] == self._objects[path][0] for path in objects
        ):
            return False
        self._objects = objects
        # A line that comes twice is one event: it was merged, and its log's own object is still there.
        lines = {line for _, data in objects.values() for line in data.splitlines()}
        self._known = {
            line: self._known[line] if line in self._known else _parse(line) for line in lines
        }
        found = [event for event in self._known.values() if event is not None]
        self.damaged = sum(
            event is None and bool(line.strip()) for line, event in self._known.items()
        )
        self.events = sorted(found, key=lambda event: event["time"])
        return True

    def _read_objects(self) -> dict[str, tuple[FileInfo, bytes]]:
        listed = self._store.list(FOLDER)
        self.modified = max((info.modified for info in listed), default=0.0)
        chosen = list(self._newest(listed))
        self.whole = len(chosen) == len(listed)
        kept = {i.path: self._objects[i.path] for i in chosen if i.path in self._objects}
        kept = {path: kept[path] for path in kept if kept[path][0] in chosen}
        changed = [info for info in chosen if info.path not in kept]
        data = read_many(self._store, [info.path for info in changed])
        return kept | {i.path: (i, each) for i, each in zip(changed, data, strict=True)}

    def _newest(self, listed: Iterable[FileInfo]) -> Iterable[FileInfo]:
        left = self._most
        for info in sorted(listed, key=lambda info: (info.modified, info.path), reverse=True):
            left -= info.size
            if left < 0:
                return
            yield info


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line; None for one that is damaged, has no time or a field of another type.

    What JSON does not know (NaN) is null.
    """
    try:
        event = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    at = event.get("time") if isinstance(event, dict) else None
    timed = isinstance(at, int | float) and 0 <= at < _END_OF_TIME
    return event if timed and is_typed(event) else None
