"""Making a checkpoint, and clearing away those that are no longer needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from raymat.checkpoint.find import scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import RetentionPolicy, plan, prune
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot, SnapshotBuffer
from raymat.checkpoint.store import Store
from raymat.errors import StorageError
from raymat.train.group import Group
from raymat.train.logger import Logger
from raymat.train.state import Promise, Record, capture
from raymat.train.step import TrainStep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commit:
    """A checkpoint that is committed."""

    checkpoint: CheckpointId
    seconds: float
    """What training lost to it."""
    bytes: int
    """Of the tensors, over all workers."""


class BlockingSaver:
    """Writes checkpoints while training waits.

    The one seam between training and saving: what saves beside training takes a snapshot here and commits it later.
    """

    def __init__(
        self,
        store: Store,
        group: Group,
        *,
        run_id: str,
        attempt: int,
        promise: Promise,
        loggers: Sequence[Logger],
    ) -> None:
        """`loggers` are flushed before each commit: a curve must not end before its checkpoint."""
        self._store, self._group = store, group
        self._run_id, self._attempt, self._promise = run_id, attempt, promise
        self._loggers = loggers
        self._buffer = SnapshotBuffer()

    def save(self, step: TrainStep, record: Record) -> Commit:
        """Commit the state. Called by all workers; returns when all shares are durable, raises on all of them.

        Raises:
            StorageError: a worker could not write its share, or rank 0 the curves.
        """
        began = time.monotonic()
        checkpoint = CheckpointId(record.step, self._attempt)
        tensors, extra = capture(step, record, self._promise)
        snapshot = Snapshot.take(record.step, tensors, extra, self._buffer)
        error = None
        try:
            for logger in self._loggers:
                logger.flush(record.step)
            write_share(self._store, checkpoint, snapshot, self._group.world, self._run_id)
        except StorageError as raised:
            error = raised
        self._group.raise_together(error)
        size = sum(t.numel() * t.element_size() for t in snapshot.tensors.values())
        return Commit(checkpoint, time.monotonic() - began, size)


def retain(
    store: Store,
    policy: RetentionPolicy,
    record: Record,
    attempt: int,
    damaged: Collection[CheckpointId],
) -> None:
    """Delete the checkpoints that `policy` does not keep; best is the lowest validation loss. By rank 0 alone.

    Storage that fails is logged: what is left lying is deleted after the next commit.
    """
    losses = {v.step: v.loss for v in record.validations if v.loss is not None}
    try:
        statuses = scan(store)
        metrics = {s.id: losses[s.id.step] for s in statuses if s.id.step in losses}
        doomed = plan(statuses, policy, attempt=attempt, metrics=metrics, damaged=damaged).delete
        if doomed:
            prune(store, doomed)
    except StorageError as error:
        log.warning("old checkpoints are left for later: %s", error.line)
