"""Asynchronous checkpointing: a step pays for copying this rank's share out of the way, a thread writes it.

load = Load.agree(every rank's writer.load())     the loop lets the ranks agree, by its own collective
commits = writer.confirm(load.durable)            what all ranks have written is committed
writer.save(step, tensors, extra, decide(load))   the same decision on every rank, at the same step
writer.wait_for_copy()                            before the optimiser changes what is being copied
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from raymat.checkpoint import safetensors_io
from raymat.checkpoint.commit_tracker import Commit, CommitTracker, Counts
from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import CheckpointId, Manifest, Origin
from raymat.checkpoint.save_decision import Decision, Load, decide
from raymat.checkpoint.shards import share_of, write_files
from raymat.checkpoint.snapshot import SnapshotBuffer, encode_extra
from raymat.checkpoint.snapshot_queue import SnapshotJob, SnapshotQueue
from raymat.distributed.world import World
from raymat.errors import StorageError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store

PATIENCE = RetryPolicy(total=120.0, first=1.0, longest=15.0)
"""How long one snapshot is retried, on top of the store's own retries."""


OnFailure: TypeAlias = Callable[[CheckpointId, StorageError, bool], None]
"""Called in the writer's thread when a try failed; True: the checkpoint was given up. Must be quick and raise nothing."""


class AsyncWriter:
    """Writer of this rank's shares of checkpoints, in a thread of its own and in the order of the snapshots."""

    def __init__(
        self,
        store: Store,
        world: World,
        origin: Origin,
        *,
        on_failure: OnFailure = lambda checkpoint, error, final: None,
        retry: RetryPolicy = PATIENCE,
        local_cache: LocalCache | None = None,
    ) -> None:
        """Start the thread.

        `origin`: the same on all ranks. `retry`: how long one snapshot is retried, on top of the store's own retries.
        `local_cache`: keeps copies of the shards that are durable.
        """
        self._store, self._world, self._attempt = store, world, origin.attempt
        self._queue = SnapshotQueue()
        self._tracker = CommitTracker(self._queue.changed)
        self._last_taken: CheckpointId | None = None
        self._newest_buffer: SnapshotBuffer | None = None
        self._thread = _WriterThread(
            self._queue,
            self._tracker,
            lambda job: write_files(
                store, job.checkpoint, job.share, job.extra, world, origin.run, origin.word
            ),
            on_failure,
            retry,
            local_cache,
        )
        self._thread.start()

    @property
    def counts(self) -> Counts:
        """Numbers of saves so far."""
        return self._tracker.counts

    def load(self) -> Load:
        """Return how busy this rank is: to be agreed upon with `Load.agree`."""
        # Under the lock: a job that is gone must be durable, or the caller would save it again.
        with self._queue.changed:
            jobs = self._queue.jobs
            waiting = not jobs or not jobs[-1].begun
            return Load(len(jobs), waiting, self._tracker.durable, self._tracker.age())

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        extra: Mapping[str, Any],
        decision: Decision | None = None,
        *,
        lasting: Container[str] = (),
        before_write: Callable[[], None] = lambda: None,
        timeout: float | None = None,
    ) -> Decision:
        """Copy this rank's share of the state after `step` steps, and let it be written; return what was done.

        `decision`: the one that all ranks have agreed upon; None decides by this rank alone, which
        is right for one rank. `extra` matters on rank 0 only. `lasting`: tensors that the caller
        leaves as they are until it has called `wait_for_copy`. `before_write`: called in the writer's
        thread, before the share is written and again with each retry; it may raise StorageError.
        `timeout`: how long WAIT waits at most, in seconds.

        Raises:
            StorageError: there is no room by then. CheckpointError: a state that could not be read back. TypeError: one
                that cannot be stored.
        """
        decision = decide(self.load()) if decision is None else decision
        self._tracker.add_due(step)
        if decision is Decision.SKIP:
            self._tracker.count("skipped")
            return decision
        buffer, decision = self._take_buffer(decision, timeout)
        try:
            share = share_of(tensors, self._world)
            copies = buffer.copy(share, wait=False, lasting=lasting)
            frozen = encode_extra(extra) if self._world.rank == 0 else ""
        except BaseException:
            self._queue.free(buffer)
            raise
        checkpoint = CheckpointId(step, self._attempt)
        # Before the thread sees the job: `drain` compares with what it has written.
        self._last_taken, self._newest_buffer = checkpoint, buffer
        self._queue.put(SnapshotJob(checkpoint, copies, frozen, buffer, before_write))
        return decision

    def wait_for_copy(self) -> None:
        """Return when the `lasting` tensors of the newest snapshot may be changed."""
        if self._newest_buffer is not None:
            self._newest_buffer.wait_for_copy()
            self._newest_buffer = None

    def confirm(self, checkpoints: Iterable[CheckpointId]) -> list[Commit]:
        """Note that all ranks have written these (`durable` of the agreed load); return the new ones, oldest first."""
        return self._tracker.confirm(checkpoints)

    def require_fresh(self, max_age: float, age: float | None = None) -> None:
        """Raise StorageError if a save has been due for more than `max_age` seconds without a commit.

        `age`: the one that all ranks have agreed upon, so that all of them raise at the same step;
        default this rank's.
        """
        age = self._tracker.age() if age is None else age
        if age <= max_age:
            return
        last = self._tracker.last_error
        why = f"; the last error: {last.line}" if last else ""
        raise StorageError(
            f"no checkpoint could be committed to {self._store.url} for {age:.0f} s, more than the "
            f"{max_age:.0f} s of --max-checkpoint-age{why}"
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until nothing is on its way; return whether the newest snapshot is durable."""
        empty = self._queue.wait_until_empty(timeout)
        return empty and self._last_taken == self._tracker.last_written

    def close(self, timeout: float | None = 10.0) -> None:
        """Give up what is not written, and end the thread within `timeout` seconds if the storage lets it."""
        self._queue.close()
        self._thread.join(timeout)

    def _take_buffer(
        self, decision: Decision, timeout: float | None
    ) -> tuple[SnapshotBuffer, Decision]:
        taken = self._queue.take_buffer(decision, timeout)
        if taken is None:
            raise StorageError(
                f"no room for a checkpoint after {timeout:.0f} s: {self._store.url} does not take those before"
            )
        outcomes = {Decision.JOIN: ["joined"], Decision.WAIT: ["waited", "begun"]}
        self._tracker.count(*outcomes.get(taken[1], ["begun"]))
        return taken


class _WriterThread(threading.Thread):
    """Thread that writes the queue's snapshots, the oldest first."""

    def __init__(
        self,
        queue: SnapshotQueue,
        tracker: CommitTracker,
        write: Callable[[SnapshotJob], Manifest],
        on_failure: OnFailure,
        retry: RetryPolicy,
        local_cache: LocalCache | None,
    ) -> None:
        super().__init__(name="checkpoint-writer", daemon=True)
        self._queue, self._tracker, self._write_files = queue, tracker, write
        self._on_failure, self._retry, self._local_cache = on_failure, retry, local_cache

    def run(self) -> None:
        """Write snapshots until the queue is closed."""
        try:
            while (job := self._queue.begin_oldest()) is not None:
                job.buffer.wait()
                if (manifest := self._write(job)) is not None:
                    self._note_written(job)
                    # Only now: a copy may stand in for a shard that all ranks may know to be durable.
                    self._cache(job, manifest)
                self._queue.remove(job)
        finally:
            self._queue.close()

    def _write(self, job: SnapshotJob) -> Manifest | None:
        """Write a snapshot, with retries; return None if it was given up, for its age or for a newer one."""
        began = time.monotonic()
        for pause in self._retry.pauses(random.Random().uniform):
            try:
                job.before_write()
                return self._write_files(job)
            except StorageError as error:
                spent = time.monotonic() + pause - began
                final = spent > self._retry.total or self._queue.is_oldest_superseded()
                self._tracker.add_failure(error)
                self._tracker.count(*["given_up"] * final)
                self._on_failure(job.checkpoint, error, final)
                if final or self._queue.sleep(pause):
                    break
        return None

    def _note_written(self, job: SnapshotJob) -> None:
        commit = Commit(job.checkpoint, job.size, time.monotonic() - job.taken)
        self._tracker.add_written(commit)

    def _cache(self, job: SnapshotJob, manifest: Manifest) -> None:
        """Copy the shard to this machine's disk."""
        if self._local_cache is not None:
            pieces, superseded = safetensors_io.encode(job.share), self._queue.is_oldest_superseded
            self._local_cache.keep(job.checkpoint, manifest.files[0], pieces, superseded)
