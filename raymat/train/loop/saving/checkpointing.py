"""Checkpoints written beside training: what the loop calls, and how the workers agree on what is committed.

A save puts the state out of the way and returns. When all workers' shares are durable is found out at the next logged
step or save, by one exchange of a few bytes; a failing storage is noticed there too, by all workers at the same step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymat.checkpoint.async_writer import AsyncWriter
from raymat.checkpoint.commit_tracker import Counts
from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.save_decision import Decision, Load, decide
from raymat.train.loop.attempt import Attempt
from raymat.train.loop.interfaces import Host
from raymat.train.loop.state import RunState, capture, lasting
from raymat.train.loop.train_step import TrainStep
from raymat.train.observability.checkpoint_events import SaveSkipped
from raymat.train.observability.fault_reports import SaveFailureReport
from raymat.train.observability.logger import Logger

log = logging.getLogger(__name__)

COPY_SECONDS = 5.0
"""How long the workers wait at most, before they leave, for local copies of their shards."""

POLL_SECONDS = 0.2
"""How often the workers check at the end of a run whether its last checkpoint is durable."""

MAX_HOST_POLLS = 150
"""Maximum polls before giving up on telling the host of the last checkpoint."""


@dataclass(frozen=True)
class Saved:
    """A snapshot that was taken, and that is committed by now."""

    checkpoint: CheckpointId
    metrics: dict[str, Any]
    """What the host is told with it: as of its step."""
    stall: float
    """Seconds that training stood still for it."""
    bytes: int
    """Of the tensors, over all workers."""
    seconds: float = math.nan
    """From the snapshot until this worker's share was durable."""


class CommitAgreement:
    """The workers' common knowledge of their snapshots: which are on their way, and which are committed.

    A worker may be ahead of another. So nothing is decided by what one of them sees: every decision follows from the
    last exchange, and is the same on all of them.
    """

    def __init__(self, attempt: Attempt, host: Host, writer: AsyncWriter, resumed: int) -> None:
        """`resumed`: the step of the checkpoint that the run resumes from; 0: none."""
        self._attempt, self._host, self._writer = attempt, host, writer
        self._max_age = attempt.config.checkpoint.max_checkpoint_age.seconds
        self._taken: dict[CheckpointId, Saved] = {}
        """Snapshots that are not committed yet."""
        self._unreported: Saved | None = None
        """The newest commit that the host was not told of."""
        self.committed_step = resumed
        """Of the newest checkpoint that is known to be committed; 0: none."""
        self.save_seconds: float | None = None
        """From a snapshot until this worker's share was durable, the newest measured."""
        self._alive = 0
        """Snapshots that the busiest worker had on its way at the last exchange."""

    def add(self, saved: Saved) -> None:
        """Note a snapshot that all workers have taken now."""
        self._taken[saved.checkpoint] = saved
        self._alive = max(1, self._alive)

    def awaits(self, step: int) -> bool:
        """Whether the snapshot of `step` is not committed yet and may still be."""
        return self._alive > 0 and any(checkpoint.step == step for checkpoint in self._taken)

    def exchange(self) -> tuple[Load, list[Saved]]:
        """Exchange the workers' loads; return the agreed one and what is newly committed, and tell the host of it.

        Raises:
            StorageError: no save could be committed for longer than --max-checkpoint-age.
        """
        # The host's word goes with it: its `committed` is a barrier on Ray, so all workers must call it or none.
        pairs = self._attempt.group.gather((self._writer.load(), self._host.busy()))
        self._attempt.record_activity("waiting for storage")
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

    def wait_for_room(self, keep_waiting: bool) -> list[Saved]:
        """Let training stand until a snapshot fits; `keep_waiting`: not in the place of the one that waits."""
        found: list[Saved] = []
        while True:
            load, saved = self.exchange()
            found += saved
            decision = decide(load, urgent=True)
            if decision is Decision.BEGIN or (decision is Decision.JOIN and not keep_waiting):
                return found
            time.sleep(POLL_SECONDS / 2)

    def wait_for_local_copies(self, until: float) -> None:
        """Let all workers copy their newest shard to their disks: whoever leaves first takes the others with it."""
        self._writer.drain(max(0.0, min(COPY_SECONDS, (until - time.monotonic()) / 2)))
        self._attempt.group.gather(None)

    def report_last(self) -> None:
        """Tell the host of the last checkpoint too, unless it handles one before for too long."""
        for _ in range(MAX_HOST_POLLS):
            if self._unreported is None:
                return
            time.sleep(POLL_SECONDS)
            self.exchange()
        log.warning("the host was not told of %s", self._unreported and self._unreported.checkpoint)


class AsyncSaver:
    """One worker's part in saving. All workers call each method at the same steps, unless it says that it is no collective."""

    def __init__(
        self,
        attempt: Attempt,
        host: Host,
        loggers: Sequence[Logger],
        *,
        resumed: int = 0,
        cache: LocalCache | None = None,
    ) -> None:
        """`loggers` are flushed before each commit: a curve must not end before its checkpoint.

        `resumed`: the step of the checkpoint that the run resumes from; 0: none. `cache`: keeps copies of shards.
        """
        self._attempt, self._loggers = attempt, loggers
        self._writer = AsyncWriter(
            attempt.store,
            attempt.group.world,
            attempt.origin,
            on_failure=SaveFailureReport(attempt.events),
            local_cache=cache,
        )
        self.agreement = CommitAgreement(attempt, host, self._writer, resumed)
        """What the workers know of all snapshots."""
        self.newest_step = resumed
        """Of the newest snapshot; 0: none."""
        self._newest_at = -math.inf
        self._kept_step = 0
        """Of the newest snapshot that is kept for good; 0: none."""

    def save(
        self,
        step: TrainStep,
        state: RunState,
        metrics: dict[str, Any],
        *,
        urgent: bool = False,
        kept: bool = False,
    ) -> list[Saved]:
        """Take a snapshot, unless storage is too far behind and it is not `urgent`; return what is committed by now.

        `kept`: while it waits to be written, no later one takes its place.

        Raises:
            StorageError: no save could be committed for longer than --max-checkpoint-age.
        """
        load, saved = self.agreement.exchange()
        wanted = (state.pending_validation, self._kept_step)
        keep_waiting = self.newest_step in wanted and self.newest_step != state.step
        decision = decide(load, urgent=urgent)
        if decision is Decision.JOIN and keep_waiting:  # somebody needs the one that waits
            decision = Decision.WAIT if urgent else Decision.SKIP
        if decision is Decision.SKIP:
            self._attempt.emit(SaveSkipped(step=state.step))
        if decision is Decision.WAIT:
            saved += self.agreement.wait_for_room(keep_waiting)
        began = time.monotonic()
        size = self._take(step, state, decision)
        if decision is not Decision.SKIP:
            checkpoint = CheckpointId(state.step, self._attempt.number)
            stall = time.monotonic() - began
            self.agreement.add(Saved(checkpoint, metrics, stall, size))
            self.newest_step, self._newest_at = state.step, began
            self._kept_step = state.step if kept else self._kept_step
        return saved

    def poll(self) -> list[Saved]:
        """Return what was committed since the last exchange.

        Raises:
            StorageError: no save could be committed for longer than --max-checkpoint-age.
        """
        return self.agreement.exchange()[1]

    def finish(
        self, step: TrainStep, state: RunState, metrics: dict[str, Any], *, until: float = math.inf
    ) -> list[Saved]:
        """Wait until the state, saved before, is committed; it is taken again if it was given up.

        `until`: `time.monotonic` seconds at which the workers stop waiting, all of them. Without it the host is told too.

        Raises:
            StorageError: that took longer than --max-checkpoint-age.
        """
        found: list[Saved] = []
        while self.agreement.committed_step < state.step:
            # The first worker whose time is up ends the wait for all.
            if until < math.inf and any(self._attempt.group.gather(time.monotonic() > until)):
                return found
            self._writer.drain(POLL_SECONDS)
            load, saved = self.agreement.exchange()
            found += saved
            if load.alive == 0 and self.agreement.committed_step < state.step:
                found += self.save(step, state, metrics, urgent=True)
        self.agreement.wait_for_local_copies(until)
        if until == math.inf:
            self.agreement.report_last()
            self._writer.close()
        return found

    def wait_for_copy(self) -> None:
        """Return when the optimiser may change what is being copied. Not a collective."""
        self._writer.wait_for_copy()

    def abandon(self, timeout: float) -> None:
        """End with an error: let what is on its way arrive, `timeout` seconds at most. Not a collective."""
        try:
            self._writer.drain(timeout)
        except RuntimeError:  # a fault of the writer itself, whose traceback was printed already
            return
        self._writer.close(0.0)

    def reopen(self) -> None:
        """Save again at the step that the run resumes from: its state has changed since that checkpoint without a step."""
        self.agreement.committed_step -= 1
        self.newest_step = self.agreement.committed_step

    def seconds_since_save(self) -> float:
        """Return the seconds since the newest snapshot; infinite before the first. Not a collective."""
        return time.monotonic() - self._newest_at

    @property
    def counts(self) -> Counts:
        """What became of this worker's saves."""
        return self._writer.counts

    def _take(self, step: TrainStep, state: RunState, decision: Decision) -> int:
        """Carry out `decision`; return the bytes of the state."""
        tensors, extra = capture(step, state, self._attempt.contract)
        at = state.step
        if decision is not Decision.SKIP:
            for logger in self._loggers:
                logger.cut(at)
        # A skipped save goes to the writer too: it counts for --max-checkpoint-age.
        self._writer.save(
            at,
            tensors,
            extra,
            decision,
            lasting=lasting(step),
            before_write=lambda: self._flush(at),
        )
        return sum(t.numel() * t.element_size() for t in tensors.values())

    def _flush(self, step: int) -> None:
        for logger in self._loggers:
            logger.flush(step)
