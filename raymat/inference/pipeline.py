"""Work of other threads ahead of and behind the caller's, in order and with a bounded number of results in memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(tasks: Iterable[Callable[[], T]], *, threads: int, depth: int) -> Iterator[T]:
    """Yield the results of tasks in their order, up to `depth` of them computed ahead; close it to stop the threads.

    With one thread the tasks run one after the other. What a task raises is raised where its result was due.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Behind:
    """Calls that threads make for the caller, who waits only when `depth` of them are not done.

    With one thread they are made one after the other. What a call raises, a later `submit` or the end of the block
    raises. A block that fails leaves the calls undone that have not begun.
    """

    def __init__(self, *, threads: int, depth: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._depth = depth
        self._waiting: deque[Future[Any]] = deque()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, call: Callable[[], Any]) -> None:
        """Have a thread make this call."""
        if len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(call))


class Stopwatch:
    """Seconds that each kind of work took, over all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Add the time of the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            with self._lock:
                self.seconds[kind] = self.seconds.get(kind, 0.0) + took
