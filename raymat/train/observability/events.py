"""A run's events as JSON lines in its events/ folder.

Object stores cannot append, so a log writes small objects and rewrites the newest one until it is full. Each process
has its own objects, named by attempt, writer and a random word: no process overwrites another's, not even a late
writer of a dead attempt. Events are for people and tools; a run never depends on one.
"""

from __future__ import annotations

import copy
import json
import logging
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from raymat.errors import StorageError
from raymat.storage.bulk import read_many, until_present
from raymat.storage.fields import parse_objects
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store
from raymat.train.observability.event import Event
from raymat.train.observability.event_kinds import is_typed

log = logging.getLogger(__name__)

FOLDER = "events"
PATIENCE_SECONDS = 2.0
"""Maximum time that training waits for storage to take an event."""
SEGMENT_BYTES = 64 * 1024
"""Size above which a log starts a new object."""
MAX_WAITING_BYTES = 2**20
"""Maximum size of the events that wait for failing storage; then the oldest are dropped."""
_ATTEMPT = re.compile(rf"(?:^|/)(?:{FOLDER}/a|checkpoints/step-\d+-a)(\d+)[-/.]")


class EventLog:
    """One process's log.

    Every stored event has `time` (Unix seconds), `attempt`, `writer` and `kind`, then its own fields.
    """

    def __init__(self, store: Store, attempt: int | None, writer: str) -> None:
        """Open a log of `writer`, as in "rank-00003"; without an `attempt` each event names the newest one."""
        self._store = store
        self._impatient = copy.copy(store)
        self._impatient.retry = RetryPolicy(total=PATIENCE_SECONDS)
        self._attempt = attempt
        self._writer = writer
        prefix = writer if attempt is None else f"a{attempt:03d}-{writer}"
        self._stem = f"{FOLDER}/{prefix}-{uuid.uuid4().hex[:8]}"
        self._segment = 0
        self._lines: list[bytes] = []
        self._writing = threading.Lock()
        """Of two threads that write the newest object, the later one writes more of it."""
        self._changed = threading.Condition()
        self._written = 0
        """Number of `_lines` that are in storage."""
        self._thread: threading.Thread | None = None
        self._closing = False
        self._listener: Callable[[Event], None] = lambda event: None

    @classmethod
    def for_rank(cls, store: Store, attempt: int, rank: int) -> EventLog:
        """Open the log of a worker in one attempt."""
        return cls(store, attempt, f"rank-{rank:05d}")

    @classmethod
    def for_driver(cls, store: Store) -> EventLog:
        """Open the log of the process that starts attempts."""
        return cls(store, None, "driver")

    def emit(self, event: Event, *, required: bool = False) -> None:
        """Write an event now.

        If storage fails, this is logged, and the event is written again with the next one, unless it is `required`.

        Raises:
            StorageError: a required event could not be written.
        """
        stored = {"time": time.time(), "attempt": self._attempt_now(), "writer": self._writer}
        stored |= event.to_dict()
        with self._changed:
            self._lines.append(json.dumps(stored).encode() + b"\n")
            self._changed.notify_all()
        self._listener(event)
        if required or self._thread is None:
            self._write_pending(required)

    def write_in_background(self, listener: Callable[[Event], None] = lambda event: None) -> None:
        """Start a thread that writes all events but required ones, so that `emit` returns at once, until `close`.

        `listener` is called with each event from now on, in the thread that emits it.
        """
        self._listener = listener
        self._thread = threading.Thread(target=self._work, name="event-log", daemon=True)
        self._thread.start()

    def owns(self, path: str) -> bool:
        """Return whether this log has written the object at `path`."""
        return path.startswith(self._stem)

    def withdraw(self) -> None:
        """Remove what this log has written. Raises StorageError."""
        self._store.delete([f"{self._stem}-{n:05d}.jsonl" for n in range(self._segment + 1)])

    def close(self, timeout: float = 2 * PATIENCE_SECONDS) -> None:
        """Write what is left, within `timeout` seconds if the storage lets it, and end the thread."""
        if self._thread is not None:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._thread.join(timeout)
            self._thread = None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._written < len(self._lines))
                if self._written == len(self._lines):
                    return
                closing = self._closing
            if not self._write_pending() and not closing:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, PATIENCE_SECONDS)
            elif closing:
                return

    def _write_pending(self, required: bool = False) -> bool:
        """Write what storage does not have yet; return whether that succeeded."""
        try:
            with self._writing:
                self._write(self._store if required else self._impatient)
        except StorageError as error:
            if required:
                raise
            log.warning("events wait for storage: %s", error.line)
            self._drop_oldest()
            return False
        except Exception:
            if threading.current_thread() is not self._thread:
                raise
            log.exception(
                "events could not be written, and wait: unexpected error"
            )  # the thread goes on
            self._drop_oldest()
            return False
        return True

    def _write(self, store: Store) -> None:
        """Write the newest object again, with all of its lines."""
        # Not under the lock: `emit` must not wait while storage is slow.
        with self._changed:
            lines, segment = list(self._lines), self._segment
        data = b"".join(lines)
        store.write(f"{self._stem}-{segment:05d}.jsonl", data)
        with self._changed:
            self._written = len(lines)
            if len(data) > SEGMENT_BYTES:
                del self._lines[: len(lines)]
                self._segment, self._written = segment + 1, 0

    def _drop_oldest(self) -> None:
        with self._changed:
            waiting = sum(map(len, self._lines))
            while waiting > MAX_WAITING_BYTES:
                waiting -= len(self._lines.pop(self._written))

    def _attempt_now(self) -> int | None:
        if self._attempt is not None:
            return self._attempt
        try:
            # Every attempt has left its `start` event: the checkpoints need no listing of their own.
            return highest_attempt(self._store, folders=(FOLDER,))
        except StorageError:
            return None


def read_events(store: Store) -> list[dict[str, Any]]:
    """Return all events of a run, oldest first, but lines that are no JSON object or have a field of another type.

    An event of another version may lack fields: `event_kinds.tells` says whether it has those that a reader needs.

    Raises:
        StorageError: the storage cannot be read.
    """
    return read_events_counted(store)[0]


def read_events_counted(store: Store) -> tuple[list[dict[str, Any]], int]:
    """Return the events as `read_events` does, and the number of lines that are left out.

    Raises:
        StorageError: the storage cannot be read.
    """
    lines = until_present(lambda: _read_event_lines(store))
    events = [event for event in parse_objects(lines) if is_typed(event)]
    return sorted(events, key=lambda event: event.get("time", 0.0)), len(lines) - len(events)


def _read_event_lines(store: Store) -> list[bytes]:
    paths = [file.path for file in store.list(FOLDER)]
    # A line that comes twice is one event: it was merged, and its log's own object is still there, or there again.
    lines = {line: None for data in read_many(store, paths) for line in data.splitlines()}
    return [line for line in lines if line.strip()]


def read_lines(data: bytes) -> list[dict[str, Any]]:
    """Return the JSON objects of a JSON-lines file, without damaged lines."""
    return parse_objects(data.splitlines())


def highest_attempt(store: Store, folders: Sequence[str] = (FOLDER, "checkpoints")) -> int:
    """Return the highest attempt that left anything in these folders; 0 if none did.

    Raises:
        StorageError: the storage cannot be read.
    """
    return max(_named_attempts(store, folders).values(), default=0)


def claim_attempt(store: Store, start: Event) -> tuple[int, EventLog]:
    """Take a number that no other attempt has or will take, by writing `start` as its first event; return it with rank 0's log.

    Two that claim the same number at once list afterwards: the later of the two writes was there before its writer
    listed, so that at least one sees the other. Whoever sees another takes a number anew.

    Raises:
        StorageError: the storage cannot be read or written.
    """
    pauses = random.Random()  # seeded by the system: two that clash must part
    while True:
        number = highest_attempt(store) + 1
        log = EventLog.for_rank(store, number, 0)
        log.emit(start, required=True)
        named = _named_attempts(store, (FOLDER, "checkpoints")).items()
        if all(log.owns(path) for path, attempt in named if attempt == number):
            return number, log
        log.withdraw()
        time.sleep(pauses.uniform(0.0, 1.0))


def _named_attempts(store: Store, folders: Sequence[str]) -> dict[str, int]:
    """Return the paths in these folders whose names say which attempt wrote them, with its number."""
    paths = [file.path for folder in folders for file in store.list(folder)]
    return {path: int(match[1]) for path in paths if (match := _ATTEMPT.search(path))}
