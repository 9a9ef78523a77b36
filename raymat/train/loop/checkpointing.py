"""Checkpoints beside training: what the loop calls, and what it is told when one is committed.

A save puts the state out of the way and returns. When all workers' shares are durable is found out at the next logged
step or save, by one exchange of a few bytes; there a failing storage is noticed too, by all workers at the same step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymat.checkpoint.async_writer import AsyncWriter, Counts, WriterEvents
from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.save_decision import Decision, Load, decide
from raymat.distributed.collectives import Group
from raymat.errors import StorageError
from raymat.storage.store import Store
from raymat.train.loop.interfaces import Host
from raymat.train.loop.state import ResumeContract, RunState, capture, lasting
from raymat.train.loop.train_step import TrainStep
from raymat.train.observability.events import EventLog
from raymat.train.observability.logger import Logger

log = logging.getLogger(__name__)

COPY_SECONDS = 5.0
"""How long the workers wait at most, before they leave, for the copies that a restart can read."""

POLL_SECONDS = 0.2
"""How often the workers look at the end of a run whether its last checkpoint is durable."""

TELLING_POLLS = 150
"""So often they look at most whether the host can be told of it."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was taken, and by now is committed."""

    checkpoint: CheckpointId
    metrics: dict[str, Any]
    """What the host is told with it: as of its step."""
    stall: float
    """Seconds that training stood still for it."""
    bytes: int
    """Of the tensors, over all workers."""
    seconds: float = math.nan
    """From the snapshot until this worker's share was durable."""


class AsyncSaver:
    """One worker's part in saving. Every method but `settle` is called by all workers, at the same steps."""

    def __init__(
        self,
        store: Store,
        group: Group,
        host: Host,
        events: EventLog,
        *,
        run_id: str,
        attempt: int,
        promise: ResumeContract,
        loggers: Sequence[Logger],
        resumed: int = 0,
        local_cache: LocalCache | None = None,
    ) -> None:
        """`loggers` are flushed before each commit: a curve must not end before its checkpoint.

        `resumed`: the step of the checkpoint that the run goes on from; 0: none. `local_cache`: keeps copies of shards.
        """
        self._group, self._host, self._events = group, host, events
        self._attempt, self._promise, self._loggers = attempt, promise, loggers
        self._max_age = promise.config.checkpoint.max_checkpoint_age.seconds
        self._writer = AsyncWriter(
            store,
            group.world,
            run_id,
            attempt,
            events=WriterEvents(on_failure=self._tell_failure),
            local_cache=local_cache,
        )
        self._taken: dict[CheckpointId, Saved] = {}
        """Snapshots that are not committed yet."""
        self._unreported: Saved | None = None
        self.committed_step = resumed
        """Of the newest checkpoint that is known to be committed; 0: none."""
        self.newest_step = resumed
        """Of the newest snapshot; 0: none."""
        self.save_seconds: float | None = None
        """From a snapshot until this worker's share was durable, the newest measured."""
        self._newest_at = -math.inf
        self.on_look: Callable[[], None] = lambda: None
        """Called whenever the workers look at how far storage is: none of them hangs."""
        self._failing: CheckpointId | None = None
        self._alive = 0
        """Snapshots that the busiest worker had on its way when they last spoke of it."""

    def save(
        self, step: TrainStep, record: RunState, metrics: dict[str, Any], *, urgent: bool = False
    ) -> list[Saved]:
        """Take a snapshot, unless storage is too far behind and it is not `urgent`; returns what is committed by now.

        Raises:
            StorageError: no save could be committed for longer than --max-checkpoint-age.
        """
        load, saved = self._agree()
        decision = decide(load, urgent=urgent)
        if decision is Decision.JOIN and self._keeps(record):
            decision = Decision.WAIT if urgent else Decision.SKIP
        if decision is Decision.SKIP:
            self._events_of_lead("save_skipped", step=record.step)
        if decision is Decision.WAIT:
            saved += self._wait_for_room(self._keeps(record))
        began = time.monotonic()
        tensors, extra = capture(step, record, self._promise)
        if decision is not Decision.SKIP:
            for logger in self._loggers:
                logger.cut(record.step)
        self._writer.save(
            record.step,
            tensors,
            extra,
            decision,
            lasting=lasting(step),
            before_write=lambda at=record.step: self._flush(at),  # type: ignore[misc]
        )
        if decision is not Decision.SKIP:
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            checkpoint = CheckpointId(record.step, self._attempt)
            stall = time.monotonic() - began
            self._taken[checkpoint] = Saved(checkpoint, metrics, stall, size)
            self._alive = max(1, self._alive)
            self.newest_step, self._newest_at = record.step, began
        return saved

    def _keeps(self, record: RunState) -> bool:
        """Whether the snapshot that waits is one that a validation needs."""
        return self.newest_step == record.pending_validation != record.step

    def reopen(self) -> None:
        """What a run remembers has changed without a step since the checkpoint it goes on from: that one is not the newest
        state."""
        self.newest_step = self.committed_step = self.committed_step - 1

    def since_save(self) -> float:
        """Seconds since the newest snapshot; infinite before the first. Not a collective."""
        return time.monotonic() - self._newest_at

    @property
    def counts(self) -> Counts:
        """What became of this worker's saves."""
        return self._writer.counts

    def awaits(self, step: int) -> bool:
        """Whether the snapshot of `step` is not committed yet and may still be, as far as the workers have agreed."""
        return self._alive > 0 and any(checkpoint.step == step for checkpoint in self._taken)

    def settle(self) -> None:
        """Return when the optimiser may change what is being copied. Not a collective."""
        self._writer.wait_for_copy()

    def poll(self) -> list[Saved]:
        """What was committed since the last look.

        Raises:
            StorageError: no save could be committed for longer than --max-checkpoint-age.
        """
        return self._agree()[1]

    def finish(
        self, step: TrainStep, record: RunState, metrics: dict[str, Any], *, until: float = math.inf
    ) -> list[Saved]:
        """Wait until the state, saved before, is committed; it is taken again if it was given up.

        `until`: Unix seconds; then the workers stop waiting, all of them. Without it the host is told too.

        Raises:
            StorageError: that took longer than --max-checkpoint-age.
        """
        found: list[Saved] = []
        while self.committed_step < record.step:
            if until < math.inf and any(self._group.gather(time.time() > until)):
                return found
            self._writer.drain(POLL_SECONDS)
            load, saved = self._agree()
            found += saved
            if load.alive == 0 and self.committed_step < record.step:
                found += self.save(step, record, metrics, urgent=True)
        self._await_copies(until)
        if until == math.inf:
            self._tell_host()
            self._writer.close()
        return found

    def abandon(self, timeout: float) -> None:
        """Training ends with an error: let what is on its way arrive, `timeout` seconds at most. Not a collective."""
        try:
            self._writer.drain(timeout)
        except RuntimeError:  # the writer's own fault, whose traceback is told already
            return
        self._writer.close(0.0)

    def _await_copies(self, until: float) -> None:
        """Whoever leaves first takes the others with it: let all copy their newest shard before."""
        self._writer.drain(max(0.0, min(COPY_SECONDS, (until - time.time()) / 2)))
        self._group.gather(None)

    def _agree(self) -> tuple[Load, list[Saved]]:
        """What all workers know of each other now; the host is told of what is newly committed."""
        pairs = self._group.gather((self._writer.load(), self._host.busy()))
        self.on_look()
        load = Load.agree(load for load, _ in pairs)
        self._alive = load.alive
        commits = self._writer.confirm(load.durable)
        saved = [replace(self._taken[c.checkpoint], seconds=c.seconds) for c in commits]
        if saved:
            newest, self.save_seconds = saved[-1].checkpoint, saved[-1].seconds
            self.committed_step = newest.step
            self._taken = {c: taken for c, taken in self._taken.items() if c > newest}
            self._unreported = saved[-1]
        if self._unreported is not None and not any(busy for _, busy in pairs):
            self._host.committed(self._unreported.checkpoint, self._unreported.metrics)
            self._unreported = None
        if not saved:
            self._writer.require_fresh(self._max_age, load.age)
        return load, saved

    def _tell_host(self) -> None:
        """Tell the host of the last checkpoint too, unless it deals for too long with one before."""
        for _ in range(TELLING_POLLS):
            if self._unreported is None:
                return
            time.sleep(POLL_SECONDS)
            self._agree()
        log.warning("the host was not told of %s", self._unreported and self._unreported.checkpoint)

    def _wait_for_room(self, keeps: bool) -> list[Saved]:
        """Training stands until a snapshot fits, as long as the newest commit is fresh enough.

        `keeps`: not in the place of the one that waits.
        """
        found: list[Saved] = []
        while True:
            load, saved = self._agree()
            found += saved
            decision = decide(load, urgent=True)
            if decision is Decision.BEGIN or (decision is Decision.JOIN and not keeps):
                return found
            time.sleep(POLL_SECONDS / 2)

    def _flush(self, step: int) -> None:
        for logger in self._loggers:
            logger.flush(step)

    def _tell_failure(self, checkpoint: CheckpointId, error: StorageError, final: bool) -> None:
        """In the writer's thread. The first fault of a checkpoint, and that it was given up; not each try between."""
        if final or checkpoint != self._failing:
            self._failing = checkpoint
            self._events.emit(
                "save_failed", checkpoint=str(checkpoint), given_up=final, error=error.line
            )

    def _events_of_lead(self, kind: str, **fields: Any) -> None:
        if self._group.leads:
            self._events.emit(kind, **fields)
