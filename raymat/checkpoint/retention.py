"""Which checkpoints stay: a pure decision, and its careful execution."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from raymat.checkpoint.backends import TEMPORARY
from raymat.checkpoint.find import Status
from raymat.checkpoint.manifest import CheckpointId, parse_manifest_name
from raymat.checkpoint.store import CHECKPOINTS, FileInfo, Store

STALE_SECONDS = 3600.0
"""A temporary file older than this was left by a writer that died."""


@dataclass(frozen=True, kw_only=True)
class RetentionPolicy:
    """What is kept of the committed checkpoints."""

    keep: int = 3
    """The newest so many, at least 1."""
    best: Literal["min", "max"] | None = None
    """Also the best by metric: the smallest or the largest."""
    keep_best: int = 1
    """How many of the best."""
    every: int | None = None
    """Also those whose step is a multiple of this."""

    def __post_init__(self) -> None:
        if self.keep < 1 or self.keep_best < 1 or (self.every is not None and self.every < 1):
            raise ValueError(f"keep, keep_best and every must be at least 1: {self}")


@dataclass(frozen=True)
class Plan:
    """`delete`: oldest first. `keep`: every other one with the reason why it stays."""

    delete: tuple[CheckpointId, ...]
    keep: Mapping[CheckpointId, str]


def plan(
    statuses: Iterable[Status],
    policy: RetentionPolicy,
    *,
    attempt: int | None = None,
    metrics: Mapping[CheckpointId, float] | None = None,
    protected: Collection[CheckpointId] = (),
    damaged: Collection[CheckpointId] = (),
) -> Plan:
    """What to delete and what to keep, of everything that `statuses` lists.

    - Committed: one per step counts (of two attempts' the newer). The newest `keep`, the best and
      each multiple of `every` stay, and always the newest of all and the newest of the living
      `attempt`. The others go.
    - Torn: goes when a newer committed one exists and an attempt before the living one wrote it.
      Never counted.
    - `attempt`: the one that is alive, None if unknown (then no torn one goes: somebody may still
      be writing it).
    - `metrics`: by checkpoint; of two attempts of a step either's counts for both. NaN is no
      metric. Of equal ones the earliest is the best.
    - `protected` stay whatever they are: Ray's ledger names them, or a validation still reads them.
    - `damaged` failed verification when somebody read them: they are treated as torn, however whole
      they look.
    """
    every_status = sorted(statuses, key=lambda status: status.id)
    believed = [s.id for s in every_status if s.state == "committed" and s.id not in set(damaged)]
    by_step = {checkpoint.step: checkpoint for checkpoint in believed}
    counted = sorted(by_step.values())
    keep: dict[CheckpointId, str] = {}
    for checkpoint in reversed(_best(counted, policy, metrics or {})):
        keep[checkpoint] = "best"
    for checkpoint in counted:
        if policy.every is not None and checkpoint.step % policy.every == 0:
            keep.setdefault(checkpoint, f"every {policy.every} steps")
    for checkpoint in counted[-policy.keep :]:
        keep.setdefault(checkpoint, "newest")
    for checkpoint in [c for c in believed if c.attempt == attempt][-1:]:
        keep.setdefault(checkpoint, "newest of the living attempt")
    for status in every_status:
        if status.id not in believed and not _removable(status.id, believed, attempt):
            keep[status.id] = "torn, may still be needed"
        if status.id in protected:
            keep.setdefault(status.id, "protected")
    return Plan(tuple(s.id for s in every_status if s.id not in keep), keep)


def prune(
    store: Store,
    checkpoints: Collection[CheckpointId],
    *,
    now: float | None = None,
    stale: float = STALE_SECONDS,
) -> int:
    """Delete `checkpoints`, and temporary files that dead writers left in any checkpoint.

    All manifests go first, in one batch, then everything else: a crash in between leaves torn ones,
    never one that is half believed, and calling again finishes the work. `now`: Unix seconds,
    default the clock's. Returns the bytes freed.
    """
    now = time.time() if now is None else now
    doomed = {str(checkpoint) for checkpoint in checkpoints}
    first: list[FileInfo] = []
    rest: list[FileInfo] = []
    for info in store.list(CHECKPOINTS, temporary=True):
        path = PurePosixPath(info.path)
        if path.parts[1] in doomed:
            (first if parse_manifest_name(path.name) else rest).append(info)
        elif path.name.startswith(TEMPORARY) and now - info.modified > stale:
            rest.append(info)
    for part in (first, rest):
        if part:
            store.delete([info.path for info in part])
    return sum(info.size for info in first + rest)


def _best(
    counted: Sequence[CheckpointId], policy: RetentionPolicy, metrics: Mapping[CheckpointId, float]
) -> list[CheckpointId]:
    """The best `keep_best` of `counted`, best first."""
    if policy.best is None:
        return []
    value = {c.step: metrics[c] for c in sorted(metrics) if not math.isnan(metrics[c])}
    sign = 1 if policy.best == "min" else -1
    ranked = sorted(
        (c for c in counted if c.step in value), key=lambda c: (sign * value[c.step], c)
    )
    return ranked[: policy.keep_best]


def _removable(torn: CheckpointId, believed: Sequence[CheckpointId], attempt: int | None) -> bool:
    """Whether nobody needs a torn checkpoint: there is a newer one, and its writer is not alive."""
    superseded = bool(believed) and believed[-1] > torn
    return superseded and attempt is not None and torn.attempt < attempt
