"""Reports on faults that training survives: events, and a count of replaced images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from raymat.checkpoint.manifest import CheckpointId
from raymat.data.batch import MicroBatch, Replacement
from raymat.data.matte_statistics import LIKELY
from raymat.distributed.world import World
from raymat.errors import StorageError
from raymat.train.observability.checkpoint_events import (
    LocalCopiesOff,
    LocalCopyDamaged,
    SaveFailed,
)
from raymat.train.observability.events import EventLog
from raymat.train.observability.training_events import ImageReplaced, MattesDoubted

MAX_NAMED = 100
"""Maximum number of files that one worker names; more are only counted."""


class ReplacementReport:
    """One worker's report of images that could not be read and were replaced."""

    def __init__(self, events: EventLog) -> None:
        self.count = 0
        """Replaced images so far in this attempt."""
        self._events = events
        self._named: set[str] = set()

    def add(self, replaced: Iterable[Replacement]) -> None:
        """Count `replaced`, and write an event for each file that was not named before."""
        for found in replaced:
            self.count += 1
            if found.path not in self._named and len(self._named) < MAX_NAMED:
                self._named.add(found.path)
                self._events.emit(
                    ImageReplaced(path=found.path, reason=found.reason, example=found.number)
                )


class MatteReport:
    """One worker's report of mattes that are likely to be something else.

    Each kind is said once, with the numbers of all workers, by the first worker that has an example of it.
    """

    _FINDERS = 52
    """Workers that can be told apart in the bits of a float64."""

    def __init__(self, events: EventLog, world: World) -> None:
        self._events, self._rank = events, world.rank
        self._looked = 0
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._said: set[str] = set()

    def add(self, batch: MicroBatch) -> None:
        """Count what a batch says of its mattes."""
        self._looked += batch.looked
        for doubt in batch.doubts:
            self._counts[doubt.kind] += 1
            self._first.setdefault(doubt.kind, doubt.path)

    def numbers(self) -> list[float]:
        """Return what is to be summed over the workers: how many were looked at; each kind's count, and who has one."""
        mine = float(2**self._rank) if self._rank < self._FINDERS else 0.0
        counts = [(float(self._counts[k]), mine if k in self._first else 0.0) for k in LIKELY]
        return [float(self._looked), *(number for pair in counts for number in pair)]

    def say(self, sums: Sequence[float]) -> None:
        """Write an event for each kind that is new in the `sums` of all workers' numbers, if this is the worker to do so."""
        looked, *pairs = (int(number) for number in sums)
        for kind, count, finders in zip(LIKELY, pairs[::2], pairs[1::2], strict=True):
            if finders and kind not in self._said:
                self._said.add(kind)
                if finders & -finders == 2**self._rank:
                    self._events.emit(
                        MattesDoubted(
                            likely=kind, count=count, looked=looked, path=self._first[kind]
                        )
                    )


class SaveFailureReport:
    """A callback of the checkpoint writer, in its thread: an event for a checkpoint's first fault, and if it is given up."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._failing: CheckpointId | None = None

    def __call__(self, checkpoint: CheckpointId, error: StorageError, final: bool) -> None:
        if final or checkpoint != self._failing:
            self._failing = checkpoint
            self._events.emit(
                SaveFailed(checkpoint=str(checkpoint), given_up=final, error=error.line)
            )


class LocalCacheReport:
    """An observer of the local cache that writes an event for each fault."""

    def __init__(self, events: EventLog) -> None:
        self._events = events

    def copy_damaged(self, checkpoint: CheckpointId, file: str, reason: str) -> None:
        self._events.emit(LocalCopyDamaged(checkpoint=str(checkpoint), file=file, reason=reason))

    def copies_off(self, reason: str) -> None:
        self._events.emit(LocalCopiesOff(reason=reason))
