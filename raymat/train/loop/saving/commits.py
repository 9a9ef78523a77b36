"""The checkpoints of an attempt: when the state is saved, and what follows from each commit."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor

from raymat.checkpoint.catalog import mark_newer, scan
from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import (
    RetentionPolicy,
    find_abandoned,
    plan,
    prune,
    remove_abandoned,
)
from raymat.errors import StorageError
from raymat.storage.store import Store
from raymat.train.loop.attempt import Attempt
from raymat.train.loop.interfaces import Host
from raymat.train.loop.reporter import Reporter
from raymat.train.loop.saving.checkpointing import AsyncSaver, Saved
from raymat.train.loop.startup import StartingPoint
from raymat.train.loop.state import RunState
from raymat.train.observability.checkpoint_events import CheckpointCommitted
from raymat.train.observability.deletions import CommitRecord, announce_deletion
from raymat.train.observability.event import Event
from raymat.train.observability.events import read_events

log = logging.getLogger(__name__)


class Checkpoints:
    """One worker's part. All workers call every method at the same steps."""

    def __init__(
        self,
        attempt: Attempt,
        host: Host,
        start: StartingPoint,
        reporter: Reporter,
        cache: LocalCache | None,
    ) -> None:
        self._attempt, self._reporter, self._cache = attempt, reporter, cache
        self._step, self._damaged = start.step, start.damaged
        self.newest = start.checkpoint
        """The newest that is known to be committed; None: none is."""
        self.saver = AsyncSaver(
            attempt, host, reporter.loggers, resumed=start.state.step, cache=cache
        )
        kept = attempt.config.checkpoint
        policy = RetentionPolicy(
            keep=kept.keep,
            best=kept.best_mode,
            every=kept.keep_every,
            thresholds=kept.checkpoint_at_loss.values if kept.checkpoint_at_loss else (),
        )
        # Of rank 0: retention deletes, once for all workers.
        self._retainer = (
            Retainer(
                attempt.store,
                policy,
                attempt.number,
                metric=kept.best_metric,
                emit=functools.partial(attempt.events.emit, required=True),
                require_lease=host.require_lease,
            )
            if attempt.group.leads
            else None
        )

    def remove_abandoned(self) -> None:
        """Make room, before the first save, by removing what earlier attempts left unfinished."""
        if self._retainer is not None:
            self._retainer.remove_abandoned()

    def save(
        self, state: RunState, *, last: bool, until: float | None, kept: bool = False
    ) -> list[Saved]:
        """Save `state`; if it is the run's `last`, or with `until` (`time.monotonic` seconds), wait until it is committed.

        `kept`: training waits until it can be taken, and no later one takes its place before it is written.
        Returns what is committed by now, which the caller hands to `record`.

        Raises:
            StorageError: no save could be committed for longer than --max-checkpoint-age.
        """
        if last and self._cache is not None:
            self._cache.stop()
        metrics = self._reporter.metrics(state)
        found: list[Saved] = []
        waits = last or until is not None
        if self.saver.newest_step != state.step:
            found += self.saver.save(self._step, state, metrics, urgent=waits or kept, kept=kept)
        if waits:
            until = math.inf if last or until is None else until
            found += self.saver.finish(self._step, state, metrics, until=until)
        return found

    def record(self, found: list[Saved], state: RunState, data_wait: float) -> None:
        """Write an event for each commit, and let retention clear away what they make needless.

        `data_wait`: seconds that steps have waited for data in this attempt.
        """
        for saved in found:
            self.newest = saved.checkpoint
            self._attempt.emit(
                CheckpointCommitted(
                    checkpoint=str(saved.checkpoint),
                    step=saved.checkpoint.step,
                    seconds=saved.seconds,
                    stall=saved.stall,
                    bytes=saved.bytes,
                    data_wait=round(data_wait, 3),
                )
            )
        if found:
            self._reporter.committed(found[-1].checkpoint, found[-1].stall)
            if self._retainer is not None:
                self._retainer.committed(state, self._damaged)

    def end(self, state: RunState, already_complete: bool) -> None:
        """Clear away what the complete run does not need."""
        if self._retainer is not None:
            if (
                already_complete
            ):  # the attempt that completed it may have been killed before it cleared up
                self._retainer.committed(state, self._damaged)
            self._retainer.finish(state, self._damaged)
        if self._cache is not None:
            self._cache.remove()


class Retainer:
    """Deletes, in a thread, the checkpoints that are no longer needed. For rank 0 alone."""

    def __init__(
        self,
        store: Store,
        policy: RetentionPolicy,
        attempt: int,
        *,
        metric: str = "loss",
        emit: Callable[[Event], None] = lambda event: None,
        require_lease: Callable[[], None] = lambda: None,
    ) -> None:
        """`metric`: the validations' metric by which `policy` keeps the best. `emit`: writes an event before it returns.

        `require_lease`: raises LeaseLostError once another driver has the run, to which nothing here is needless.
        """
        self._metric, self._emit, self._require_lease = metric, emit, require_lease
        self._store, self._policy, self._attempt = store, policy, attempt
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="retention")
        self._running: Future[None] | None = None
        self._again = False

    def remove_abandoned(self) -> None:
        """Remove what earlier attempts left unfinished: they have ended, as this driver holds the lease."""
        store = self._store
        if not store.may_delete:
            return
        try:
            found = find_abandoned(
                store,
                scan(store),
                self._attempt,
                lambda: CommitRecord.of(read_events(store)).committed,
            )
            if found:
                self._require_lease()
            announce_deletion(self._emit, found, torn=True)
            remove_abandoned(store, found, self._attempt)
        except StorageError as error:
            log.warning("unfinished checkpoints are left for later: %s", error.line)

    def committed(self, state: RunState, damaged: Collection[CheckpointId]) -> None:
        """Delete what a new commit makes needless, unless the last deletion still runs: then with the next commit."""
        if not self._store.may_delete:
            return
        if self._running is not None and not self._running.done():
            self._again = True
            return
        values = {
            v.step: value for v in state.validations if (value := v.value(self._metric)) is not None
        }
        self._again = False
        self._running = self._pool.submit(
            self._retain, values, frozenset(damaged), state.pending_validation
        )

    def finish(self, state: RunState, damaged: Collection[CheckpointId]) -> None:
        """Return when all is deleted that the newest commit made needless."""
        if self._running is not None:
            self._running.result()
        if self._again:
            self.committed(state, damaged)
        self._pool.shutdown()

    def _retain(
        self, values: dict[int, float], damaged: Collection[CheckpointId], pending: int | None
    ) -> None:
        """Delete in the thread. Storage that fails is logged: what is left is deleted after the next commit.

        `pending`: the step whose checkpoint a validation may still read, and which may turn out to be the best.
        """
        try:
            found = scan(self._store)
            # Its own are of this format: the others alone are read.
            others = [status for status in found if status.id.attempt != self._attempt]
            own = [status for status in found if status.id.attempt == self._attempt]
            statuses = [*own, *mark_newer(self._store, others)]
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
                self._require_lease()
                announce_deletion(self._emit, doomed, torn=False)
                prune(self._store, doomed, dead_before=self._attempt)
        except StorageError as error:
            log.warning("old checkpoints are left for later: %s", error.line)
