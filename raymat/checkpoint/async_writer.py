"""Checkpoints written beside training: a step pays for putting this rank's share out of the way and
for nothing else.

    load = Load.agree(every rank's writer.load())     the loop lets the ranks agree, by its own collective
    commits = writer.confirm(load.durable)            what all ranks have written is committed
    writer.save(step, tensors, extra, decide(load))   the same decision on every rank, at the same step
    writer.wait_for_copy()                                   before the optimiser changes what is being copied

Ranks write at different speeds, and a checkpoint that only some of them write is never committed.
Therefore nothing here decides by what this rank alone can see: decisions are pure functions of
values that the caller has agreed upon.
"""

from __future__ import annotations

import enum
import random
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from torch import Tensor

from raymat.checkpoint import safetensors_io
from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import CheckpointId, Manifest
from raymat.checkpoint.shards import share_of, write_files
from raymat.checkpoint.snapshot import SnapshotBuffer, freeze_extra
from raymat.distributed.world import World
from raymat.errors import StorageError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store

PATIENCE = RetryPolicy(total=120.0, first=1.0, longest=15.0)
"""How long one snapshot is tried again, beyond what the store itself tries."""

MAX_ALIVE = 2
"""Snapshots in memory: one that is being written, one that waits."""

_REMEMBERED = 8
"""Shares written but not yet confirmed that a rank remembers; older ones are superseded anyway."""


class Decision(enum.Enum):
    """What becomes of a save that is due."""

    BEGIN = "begin"
    """There is room for a snapshot: take it."""
    JOIN = "join"
    """Take it in the place of the one that waits and that no rank has begun to write."""
    SKIP = "skip"
    """Do without; the next one will come."""
    WAIT = "wait"
    """Let training stand until there is room, then take it."""


@dataclass(frozen=True)
class Load:
    """How busy a writer is, or, agreed upon, how busy the busiest of all ranks is."""

    alive: int = 0
    """Snapshots in memory, 0 to MAX_ALIVE."""
    waiting: bool = True
    """Whether the newest of them is not yet begun."""
    durable: frozenset[CheckpointId] = frozenset()
    """Checkpoints whose share is written and that are not confirmed: all ranks', when agreed
    upon."""
    age: float = 0.0
    """Seconds since a save was due that is newer than the newest commit; 0 where there is none."""

    @classmethod
    def agree(cls, loads: Iterable[Load]) -> Load:
        """What every rank decides by, given every rank's own load in any order."""
        return reduce(
            lambda a, b: cls(
                max(a.alive, b.alive),
                a.waiting and b.waiting,
                a.durable & b.durable,
                max(a.age, b.age),
            ),
            loads,
        )


def decide(load: Load, *, urgent: bool = False) -> Decision:
    """What to do with a save that is due under an agreed `load`.

    `urgent`: it must not be left out (the last one, or before a node goes). Between agreement and
    action a rank can only become less busy: BEGIN always finds room, and where JOIN finds that the
    waiting snapshot was begun, there is room too.
    """
    if load.alive < MAX_ALIVE:
        return Decision.BEGIN
    if load.waiting:
        return Decision.JOIN
    return Decision.WAIT if urgent else Decision.SKIP


@dataclass(frozen=True, kw_only=True)
class WriterEvents:
    """Whom the writer tells; called in its thread: be quick, raise nothing."""

    on_written: Callable[[CheckpointId, int, float], None] = lambda checkpoint, size, seconds: None
    """This rank's share is durable: bytes, and seconds since its snapshot."""
    on_failure: Callable[[CheckpointId, StorageError, bool], None] = (
        lambda checkpoint, error, final: None
    )
    """A try failed; `final`: the checkpoint was given up. Training goes on."""


@dataclass(frozen=True)
class Commit:
    """A checkpoint that all ranks have written."""

    checkpoint: CheckpointId
    bytes: int
    """Of this rank's tensors."""
    seconds: float
    """From this rank's snapshot until its share was durable."""


@dataclass(frozen=True)
class Counts:
    """What became of the saves so far."""

    begun: int = 0
    joined: int = 0
    skipped: int = 0
    waited: int = 0
    written: int = 0
    given_up: int = 0


@dataclass
class _Job:
    """A snapshot on its way to storage."""

    checkpoint: CheckpointId
    share: Mapping[str, Tensor]
    extra: Mapping[str, Any]
    buffer: SnapshotBuffer
    first: Callable[[], None]
    taken: float
    begun: bool = False
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = sum(t.numel() * t.element_size() for t in self.share.values())


class AsyncWriter:
    """Writes this rank's share of checkpoints in a thread of its own, in the order in which they
    were taken."""

    def __init__(
        self,
        store: Store,
        world: World,
        run: str,
        attempt: int,
        *,
        events: WriterEvents = WriterEvents(),
        retry: RetryPolicy = PATIENCE,
        max_checkpoint_age: float | None = None,
        local_cache: LocalCache | None = None,
    ) -> None:
        """`run`: its id. `retry`: how long one snapshot is tried again, beyond what the store
        itself tries.

        `max_checkpoint_age`: seconds that a save may be due without any commit before `require_fresh`
        raises. `local_cache`: keeps copies of the shards that are durable.
        """
        self._store, self._world, self._run, self._attempt = store, world, run, attempt
        self._events, self._retry, self._max_age = events, retry, max_checkpoint_age
        self._local_cache = local_cache
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._free = [SnapshotBuffer() for _ in range(MAX_ALIVE)]
        self._durable: dict[CheckpointId, Commit] = {}
        self._newest_buffer: SnapshotBuffer | None = None
        self._counts = Counts()
        self._last_taken: CheckpointId | None = None
        self._last_written: CheckpointId | None = None
        self._last_error: StorageError | None = None
        self._due: list[tuple[int, float]] = []
        self._closing = False
        self._random = random.Random()
        self._thread = threading.Thread(target=self._work, name="checkpoint-writer", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts:
        """What became of the saves so far."""
        with self._changed:
            return self._counts

    def load(self) -> Load:
        """How busy this rank is: to be agreed upon with `Load.agree`."""
        with self._changed:
            waiting = not self._jobs or not self._jobs[-1].begun
            return Load(len(self._jobs), waiting, frozenset(self._durable), self._age())

    def age(self) -> float:
        """Seconds since the oldest save was due that is newer than the newest commit."""
        with self._changed:
            return self._age()

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        extra: Mapping[str, Any],
        decision: Decision | None = None,
        *,
        lasting: Container[str] = (),
        first: Callable[[], None] = lambda: None,
        timeout: float | None = None,
    ) -> Decision:
        """Copy this rank's share of the state after `step` steps, and let it be written; returns
        what was done.

        `decision`: the one that all ranks have agreed upon; None decides by this rank alone, which
        is right for one rank. `extra` matters on rank 0 only. `lasting`: tensors that the caller
        leaves as they are until it has called `wait_for_copy`. `first`: called in the writer's thread,
        before the share is written and again with each new try; it may raise StorageError.
        `timeout`: how long WAIT waits at most, in seconds. Raises StorageError if there is no room
        by then, TypeError for a state that cannot be stored.
        """
        decision = decide(self.load()) if decision is None else decision
        with self._changed:
            self._due.append((step, time.monotonic()))
        if decision is Decision.SKIP:
            self._count(skipped=1)
            return decision
        checkpoint = CheckpointId(step, self._attempt)
        share = share_of(tensors, self._world)
        buffer, decision = self._room(decision, timeout)
        try:
            copies = buffer.copy(share, wait=False, lasting=lasting)
            frozen = freeze_extra(extra) if self._world.rank == 0 else {}
        except BaseException:
            with self._changed:
                self._free.append(buffer)
            raise
        with self._changed:
            self._jobs.append(_Job(checkpoint, copies, frozen, buffer, first, time.monotonic()))
            self._last_taken, self._newest_buffer = checkpoint, buffer
            self._changed.notify_all()
        return decision

    def wait_for_copy(self) -> None:
        """Return when the `lasting` tensors of the newest snapshot may be changed."""
        if self._newest_buffer is not None:
            self._newest_buffer.wait_for_copy()
            self._newest_buffer = None

    def confirm(self, checkpoints: Iterable[CheckpointId]) -> list[Commit]:
        """Take note that all ranks have written these (`durable` of the agreed load); returns those
        that are new, oldest first."""
        with self._changed:
            commits = [self._durable[c] for c in sorted(set(checkpoints) & self._durable.keys())]
            if commits:
                newest = commits[-1].checkpoint
                self._due = [(step, when) for step, when in self._due if step > newest.step]
                self._durable = {c: v for c, v in self._durable.items() if c > newest}
        return commits

    def require_fresh(self, age: float | None = None) -> None:
        """Raise a StorageError if a save has been due for longer than `max_checkpoint_age` without a commit.

        `age`: the one that all ranks have agreed upon, so that all of them raise at the same step;
        default this rank's.
        """
        age = self.age() if age is None else age
        if self._max_age is None or age <= self._max_age:
            return
        with self._changed:
            why = f"; the last error: {self._last_error.line}" if self._last_error else ""
        raise StorageError(
            f"no checkpoint could be committed to {self._store.url} for {age:.0f} s, more than the "
            f"{self._max_age:.0f} s of --max-checkpoint-age{why}"
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until nothing is on its way, `timeout` seconds at most; whether the newest snapshot
        taken is durable."""
        with self._changed:
            idle = self._changed.wait_for(lambda: not self._jobs or not self._alive(), timeout)
            self._require_alive()
            return idle and self._last_taken == self._last_written

    def close(self, timeout: float | None = 10.0) -> None:
        """Give up what is not written, and end the thread within `timeout` seconds if the storage
        lets it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _room(self, decision: Decision, timeout: float | None) -> tuple[SnapshotBuffer, Decision]:
        """A buffer for the next snapshot, and the decision as it was carried out."""
        with self._changed:
            self._require_alive()
            if decision is Decision.JOIN and not self._free and not self._jobs[-1].begun:
                self._count(joined=1)
                return self._jobs.pop().buffer, Decision.JOIN
            waited = not self._free
            if not self._changed.wait_for(lambda: bool(self._free) or not self._alive(), timeout):
                raise StorageError(
                    f"no room for a checkpoint after {timeout:.0f} s: {self._store.url} does not take "
                    "those before"
                )
            self._require_alive()
            self._count(waited=int(waited), begun=1)
            return self._free.pop(), Decision.WAIT if waited else Decision.BEGIN

    def _work(self) -> None:
        """The thread: write one snapshot after another."""
        try:
            while (job := self._next()) is not None:
                job.buffer.wait()
                if (manifest := self._write(job)) is not None:
                    self._wrote(job)
                    self._keep(job, manifest)
                with self._changed:
                    self._jobs.remove(job)
                    self._free.append(job.buffer)
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()

    def _next(self) -> _Job | None:
        """The oldest snapshot, now begun; None when closing."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._jobs) or self._closing)
            if self._closing:
                return None
            self._jobs[0].begun = True
            return self._jobs[0]

    def _write(self, job: _Job) -> Manifest | None:
        """Write a snapshot, again and again; None when it was given up."""
        began = time.monotonic()
        for pause in self._retry.pauses(self._random.uniform):
            try:
                job.first()
                return write_files(
                    self._store, job.checkpoint, job.share, job.extra, self._world, self._run
                )
            except StorageError as error:
                final = self._hopeless(time.monotonic() + pause - began)
                with self._changed:
                    self._last_error = error
                    self._counts = replace(self._counts, given_up=self._counts.given_up + final)
                self._events.on_failure(job.checkpoint, error, final)
                if final or self._pause(pause):
                    return None
        raise AssertionError("pauses are endless")

    def _hopeless(self, spent: float) -> bool:
        """Whether to give a snapshot up: it took too long, or a newer one waits that is worth
        more."""
        with self._changed:
            return self._closing or spent > self._retry.total or len(self._jobs) > 1

    def _pause(self, seconds: float) -> bool:
        """Sleep; True if the writer is being closed."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _wrote(self, job: _Job) -> None:
        seconds = time.monotonic() - job.taken
        with self._changed:
            self._last_written, self._last_error = job.checkpoint, None
            self._durable[job.checkpoint] = Commit(job.checkpoint, job.size, seconds)
            remembered = sorted(self._durable.items(), key=lambda item: item[0])[-_REMEMBERED:]
            self._durable = dict(remembered)
            self._count(written=1)
        self._events.on_written(job.checkpoint, job.size, seconds)

    def _keep(self, job: _Job, manifest: Manifest) -> None:
        """Copy the shard, which all ranks may know to be durable by now, to this machine's disk."""
        if self._local_cache is not None:
            shard = manifest.files[0]
            self._local_cache.keep(
                job.checkpoint, shard, safetensors_io.encode(job.share), self._hurries
            )

    def _hurries(self) -> bool:
        """Whether this thread has better to do than to copy."""
        with self._changed:
            return self._closing or len(self._jobs) > 1

    def _age(self) -> float:
        return time.monotonic() - self._due[0][1] if self._due else 0.0

    def _alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def _require_alive(self) -> None:
        """The thread ends only when closed, or by a fault in this program (its traceback is on
        stderr)."""
        if not self._alive():
            raise RuntimeError("the checkpoint writer has ended")

    def _count(self, **more: int) -> None:
        with self._changed:
            now = {name: getattr(self._counts, name) + count for name, count in more.items()}
            self._counts = replace(self._counts, **now)
