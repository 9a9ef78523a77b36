"""What a run's events say of deletions: which checkpoints were committed, and may not have been deleted since.

Whoever deletes checkpoints names them in a `delete` event first, so that what is missing of others was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import StorageError
from raymat.train.observability.checkpoint_events import CheckpointsDeleted
from raymat.train.observability.event import Event

log = logging.getLogger(__name__)

EVENTS_FORMAT = 2
"""Of an attempt's events, in its `start` event: from 2 on they name what the attempt deletes."""


def announce_deletion(
    emit: Callable[[Event], None], checkpoints: Sequence[CheckpointId], *, torn: bool
) -> None:
    """Write the event, if there is anything to delete. Storage that is full may not take it, and is emptied all the same.

    `emit` returns when the event is in storage, or raises StorageError.
    """
    if checkpoints:
        try:
            emit(CheckpointsDeleted(checkpoints=list(map(str, checkpoints)), torn=torn))
        except StorageError as error:
            log.warning("no event tells of this deletion: %s", error.line)


@dataclass(frozen=True)
class CommitRecord:
    """What events say of commits and deletions, made by `CommitRecord.of`."""

    committed: frozenset[CheckpointId]
    """Those that were committed and are named by no deletion."""
    deleted: frozenset[CheckpointId]
    last: CheckpointId | None
    """The newest that the last attempt with a commit committed. No raymat deletes it; None if a user's `delete` names it."""
    complete_since: int
    """The first attempt from which on all name what they delete."""

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]]) -> CommitRecord:
        """Read the record from a run's events."""
        committed, deleted = set[CheckpointId](), set[CheckpointId]()
        formats: dict[int, int] = {}
        for event in events:
            kind, attempt = event.get("kind"), event.get("attempt")
            if kind == "commit":
                committed |= _parse([event.get("checkpoint")])
            elif kind == "delete":
                deleted |= _parse(event.get("checkpoints"))
            elif kind == "start" and isinstance(attempt, int):
                formats[attempt] = event.get("format", 1)
        newest = max((c.attempt for c in committed), default=0)
        last = max((c for c in committed if c.attempt == newest), default=None)
        since = max([*formats, *(c.attempt for c in committed)], default=0) + 1
        while formats.get(since - 1) == EVENTS_FORMAT:
            since -= 1
        return cls(
            frozenset(committed - deleted),
            frozenset(deleted),
            None if last in deleted else last,
            since,
        )

    def proves_damage(self, checkpoint: CheckpointId) -> bool:
        """Tell whether what is missing of a checkpoint was lost, and not deleted.

        Versions before the `delete` event may have deleted any but the last without a word.
        """
        known = checkpoint in self.committed and checkpoint.attempt >= self.complete_since
        return known or checkpoint == self.last


def _parse(names: Any) -> set[CheckpointId]:
    found = map(CheckpointId.try_parse, map(str, names if isinstance(names, list) else ()))
    return {checkpoint for checkpoint in found if checkpoint is not None}
