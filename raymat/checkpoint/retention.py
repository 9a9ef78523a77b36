"""Retention of checkpoints: a pure decision, and its careful execution."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from raymat.checkpoint.catalog import Status, mark_newer
from raymat.checkpoint.integrity import lost_file
from raymat.checkpoint.layout import CHECKPOINTS
from raymat.checkpoint.manifest import CheckpointId, parse_manifest_name
from raymat.storage.backends import TEMPORARY
from raymat.storage.store import FileInfo, Store, unfinished_files


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """Policy of which committed checkpoints are kept."""

    keep: int = 3
    """Number of newest checkpoints to keep, at least 1."""
    best: Literal["min", "max"] | None = None
    """Keep also the best by metric: the smallest or the largest."""
    keep_best: int = 1
    """Number of best checkpoints to keep."""
    every: int | None = None
    """Keep also those whose step is a multiple of this."""
    thresholds: tuple[float, ...] = ()
    """Keep also, for each of these, the first whose metric is at or below it (at or above it where `best`
    is "max")."""

    def __post_init__(self) -> None:
        if self.keep < 1 or self.keep_best < 1 or (self.every is not None and self.every < 1):
            raise ValueError(f"keep, keep_best and every must be at least 1: {self}")
        if not all(map(math.isfinite, self.thresholds)):
            raise ValueError(f"thresholds must be finite: {self}")


@dataclass(frozen=True)
class Plan:
    """Retention plan. `delete`: oldest first. `keep`: every other one with all its reasons."""

    delete: tuple[CheckpointId, ...]
    keep: Mapping[CheckpointId, str]


def plan(
    statuses: Iterable[Status],
    policy: RetentionPolicy,
    *,
    attempt: int | None = None,
    metrics: Mapping[CheckpointId, float] | None = None,
    epoch_ends: Collection[int] = (),
    protected: Collection[CheckpointId] = (),
    damaged: Collection[CheckpointId] = (),
) -> Plan:
    """Plan what to delete and what to keep, of everything that `statuses` lists.

    - Committed: one per step counts (of two attempts' the newer). The newest `keep`, the best, the
      first at each threshold, each multiple of `every` and those of `epoch_ends` stay, and always
      the newest of all and the newest of the living `attempt`. The others go.
    - Torn: goes when a newer committed one exists, and an attempt before the living one wrote it
      or the newer one is of the same attempt. Never counted.
    - `attempt`: the one that is alive, None if unknown (then no torn one goes: somebody may still
      be writing it).
    - `metrics`: by checkpoint; of two attempts of a step either's counts for both. NaN is no
      metric. Of equal ones the earliest is the best.
    - `epoch_ends`: steps after which a virtual epoch was complete; those without a checkpoint do
      not matter.
    - `newer` ones, which a newer raymat wrote, stay and never count.
    - `protected` stay whatever they are: somebody still reads them.
    - `damaged` failed verification when somebody read them: they are treated as torn, however whole
      they look.
    """
    every_status = sorted(statuses, key=lambda status: status.id)
    believed = [s.id for s in every_status if s.state == "committed" and s.id not in set(damaged)]
    counted = sorted({checkpoint.step: checkpoint for checkpoint in believed}.values())
    reasons: dict[CheckpointId, list[str]] = {}
    for reason, checkpoints in _wanted(counted, policy, metrics or {}, epoch_ends):
        for checkpoint in checkpoints:
            reasons.setdefault(checkpoint, []).append(reason)
    for checkpoint in [c for c in believed if c.attempt == attempt][-1:]:
        reasons.setdefault(checkpoint, ["newest of the living attempt"])
    for status in every_status:
        if status.state == "newer":
            reasons[status.id] = [status.reason]
        elif status.id not in believed and not _removable(status.id, believed, attempt):
            reasons[status.id] = ["torn, may still be needed"]
        if status.id in protected:
            reasons.setdefault(status.id, ["protected"])
    keep = {checkpoint: ", ".join(why) for checkpoint, why in reasons.items()}
    return Plan(tuple(s.id for s in every_status if s.id not in keep), keep)


def prune(
    store: Store,
    checkpoints: Collection[CheckpointId],
    *,
    dead_before: int = 0,
) -> int:
    """Delete `checkpoints`, and temporary files that writers of attempts before `dead_before` left in others.

    Manifests go first, in one batch, then everything else: a crash in between leaves torn checkpoints, which never
    count as committed, and calling again finishes the work. Returns the bytes freed.
    """
    # Ray's own ledger may name deleted checkpoints, with which it would refuse to start. raymat asks Ray to
    # keep everything (no num_to_keep) and removes the ledger before each start.
    doomed = {str(checkpoint) for checkpoint in checkpoints}
    first: list[FileInfo] = []
    rest: list[FileInfo] = []
    for info in store.list(CHECKPOINTS, temporary=True):
        path = PurePosixPath(info.path)
        if path.parts[1] in doomed:
            (first if parse_manifest_name(path.name) else rest).append(info)
        elif path.name.startswith(TEMPORARY):
            folder = CheckpointId.try_parse(path.parts[1])
            rest += [info] * (folder is not None and folder.attempt < dead_before)
    for part in (first, rest):
        if part:
            store.delete([info.path for info in part])
    return sum(info.size for info in first + rest)


def find_abandoned(
    store: Store,
    statuses: Sequence[Status],
    attempt: int,
    committed: Callable[[], Collection[CheckpointId]],
) -> list[CheckpointId]:
    """Find what attempts before `attempt` left torn, oldest first; they must have ended, but for some seconds.

    Unlike `plan`, also those newer than every committed one: storage that is full has room for nothing else. What was
    `committed` once, by the events, and what lost a file later is damage and no torn write: it stays until a newer one
    supersedes it. `statuses`: of a scan. `committed` is called only where there is something to ask. Raises StorageError.
    """
    torn = [s for s in statuses if s.state == "torn" and s.id.attempt < attempt]
    torn = [status for status in mark_newer(store, torn) if status.state == "torn"]
    if not torn:
        return []
    newest = max((s.id for s in statuses if s.state == "committed"), default=None)
    once = set(committed())
    return sorted(
        s.id
        for s in torn
        if (newest is not None and newest > s.id) or not (s.id in once or lost_file(s.files))
    )


def remove_abandoned(store: Store, checkpoints: Collection[CheckpointId], attempt: int) -> None:
    """Delete what `find_abandoned` found, and all unfinished files but this attempt's checkpoints'. Raises StorageError.

    Workers of a dead attempt may write for some seconds more, into these folders alone. Manifests are deleted before
    shards: whatever arrives meanwhile, no folder has all of its manifests and lacks a shard that it lists. A last
    manifest that arrives in between stands without shards, which every listing calls torn.
    """
    prune(store, checkpoints, dead_before=attempt)
    elsewhere = [
        i.path for i in unfinished_files(store) if PurePosixPath(i.path).parts[0] != CHECKPOINTS
    ]
    if elsewhere:
        store.delete(elsewhere)
    if checkpoints:  # what arrived during the first pass
        prune(store, checkpoints, dead_before=attempt)


def _wanted(
    counted: Sequence[CheckpointId],
    policy: RetentionPolicy,
    metrics: Mapping[CheckpointId, float],
    epoch_ends: Collection[int],
) -> Iterator[tuple[str, list[CheckpointId]]]:
    """Yield each reason to keep, with those of `counted` (oldest first) that it keeps."""
    ends = set(epoch_ends)
    sign = -1.0 if policy.best == "max" else 1.0
    by_step = {c.step: sign * metrics[c] for c in sorted(metrics) if not math.isnan(metrics[c])}
    measured = [(by_step[c.step], c) for c in counted if c.step in by_step]
    if policy.best is not None:
        yield "best", [c for _, c in sorted(measured)[: policy.keep_best]]
    for threshold in policy.thresholds:
        reached = [c for value, c in measured if value <= sign * threshold]
        yield f"first at or {'below' if sign > 0 else 'above'} {threshold:g}", reached[:1]
    if policy.every is not None:
        yield f"every {policy.every} steps", [c for c in counted if c.step % policy.every == 0]
    yield "end of an epoch", [c for c in counted if c.step in ends]
    yield "newest", list(counted[-policy.keep :])


def _removable(torn: CheckpointId, believed: Sequence[CheckpointId], attempt: int | None) -> bool:
    """Return whether nobody needs a torn checkpoint: there is a newer one, and nobody writes this one any more.

    An attempt that is dead does not; and as each worker writes its shares in order, nor does the living one once it has
    committed a newer checkpoint.
    """
    if attempt is None or not believed or believed[-1] < torn:
        return False
    newer_own = any(c.attempt == attempt and c > torn for c in believed)
    return torn.attempt < attempt or (torn.attempt == attempt and newer_own)
