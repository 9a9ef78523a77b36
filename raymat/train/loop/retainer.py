"""Clears away old checkpoints beside training."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor

from raymat.checkpoint.catalog import scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import RetentionPolicy, plan, prune
from raymat.errors import StorageError
from raymat.storage.store import Store
from raymat.train.loop.checkpointing import log
from raymat.train.loop.state import RunState


class Retainer:
    """Clears away, beside training, the checkpoints that are no longer needed. For rank 0 alone."""

    def __init__(
        self, store: Store, policy: RetentionPolicy, attempt: int, *, metric: str = "loss"
    ) -> None:
        """`metric`: of the validations, by which `policy` keeps the best."""
        self._metric = metric
        self._store, self._policy, self._attempt = store, policy, attempt
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="retention")
        self._running: Future[None] | None = None
        self._again = False

    def committed(self, record: RunState, damaged: Collection[CheckpointId]) -> None:
        """Something was committed. Where the clearing from before is still under way this waits for the next commit."""
        if self._running is not None and not self._running.done():
            self._again = True
            return
        values = {
            v.step: value
            for v in record.validations
            if (value := v.value(self._metric)) is not None
        }
        self._again = False
        self._running = self._pool.submit(
            self._retain, values, frozenset(damaged), record.pending_validation
        )

    def finish(self, record: RunState, damaged: Collection[CheckpointId]) -> None:
        """Return when all is cleared that the newest commit made needless."""
        if self._running is not None:
            self._running.result()
        if self._again:
            self.committed(record, damaged)
        self._pool.shutdown()

    def _retain(
        self, values: dict[int, float], damaged: Collection[CheckpointId], pending: int | None
    ) -> None:
        """Storage that fails is logged: what is left lying is deleted after the next commit.

        `pending`: the step whose checkpoint a validation may still read, and that may turn out to be the best.
        """
        try:
            statuses = scan(self._store)
            metrics = {s.id: values[s.id.step] for s in statuses if s.id.step in values}
            doomed = plan(
                statuses,
                self._policy,
                attempt=self._attempt,
                metrics=metrics,
                protected=[s.id for s in statuses if s.id.step == pending],
                damaged=damaged,
            ).delete
            if doomed:
                prune(self._store, doomed)
        except StorageError as error:
            log.warning("old checkpoints are left for later: %s", error.line)
