"""Hand-over of snapshots from the training thread, which takes them, to the writer's thread, which stores them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.save_decision import MAX_ALIVE, Decision
from raymat.checkpoint.snapshot import SnapshotBuffer


@dataclass(eq=False)
class SnapshotJob:
    """A snapshot on its way to storage."""

    checkpoint: CheckpointId
    share: Mapping[str, Tensor]
    extra: str
    """All that is no tensor, encoded; empty on all ranks but the first."""
    buffer: SnapshotBuffer
    before_write: Callable[[], None]
    taken: float = field(default_factory=time.monotonic)
    begun: bool = False

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(t.numel() * t.element_size() for t in self.share.values())


class SnapshotQueue:
    """Queue of at most MAX_ALIVE snapshots, oldest first, and the buffers that they live in.

    `changed` is its lock, and is notified of every change; a thread that holds it may call every method.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.jobs: list[SnapshotJob] = []
        self._free = [SnapshotBuffer() for _ in range(MAX_ALIVE)]
        self._closed = False

    def take_buffer(
        self, decision: Decision, timeout: float | None
    ) -> tuple[SnapshotBuffer, Decision] | None:
        """Return a buffer for the next snapshot, and the decision as it was carried out; None if there is no room.

        BEGIN becomes WAIT if the caller had to wait, at most `timeout` seconds. JOIN takes the buffer of the snapshot
        that waits, which is dropped.
        """
        with self.changed:
            self.require_open()
            if decision is Decision.JOIN and not self._free and not self.jobs[-1].begun:
                return self.jobs.pop().buffer, Decision.JOIN
            waited = not self._free
            if not self.changed.wait_for(lambda: bool(self._free) or self._closed, timeout):
                return None
            self.require_open()
            return self._free.pop(), Decision.WAIT if waited else Decision.BEGIN

    def free(self, buffer: SnapshotBuffer) -> None:
        """Give back a buffer that holds no snapshot."""
        with self.changed:
            self._free.append(buffer)
            self.changed.notify_all()

    def put(self, job: SnapshotJob) -> None:
        """Add the newest snapshot."""
        with self.changed:
            self.jobs.append(job)
            self.changed.notify_all()

    def begin_oldest(self) -> SnapshotJob | None:
        """Wait for a snapshot and return the oldest, marked as begun; None once the queue is closed."""
        with self.changed:
            self.changed.wait_for(lambda: bool(self.jobs) or self._closed)
            if self._closed:
                return None
            self.jobs[0].begun = True
            return self.jobs[0]

    def remove(self, job: SnapshotJob) -> None:
        """Remove a snapshot that is written or given up, and free its buffer."""
        with self.changed:
            self.jobs.remove(job)
            self.free(job.buffer)

    def is_oldest_superseded(self) -> bool:
        """Return whether the writer has something better to do than the oldest snapshot: a newer one, or ending."""
        with self.changed:
            return self._closed or len(self.jobs) > 1

    def wait_until_empty(self, timeout: float | None) -> bool:
        """Wait at most `timeout` seconds; return whether no snapshot is left. Raises RuntimeError if closed."""
        with self.changed:
            empty = self.changed.wait_for(lambda: not self.jobs or self._closed, timeout)
            self.require_open()
            return empty

    def sleep(self, seconds: float) -> bool:
        """Sleep, but not beyond `close`; return whether the queue is closed."""
        with self.changed:
            return self.changed.wait_for(lambda: self._closed, seconds)

    def close(self) -> None:
        """Let every waiting thread go on; no snapshot is begun from here on."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def require_open(self) -> None:
        """Raise RuntimeError once closed: on purpose, or by a fault in the writer (its traceback is on stderr)."""
        if self._closed:
            raise RuntimeError("the checkpoint writer has ended")
