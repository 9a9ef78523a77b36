"""Retries: the one loop that calls storage again after a fault that may pass."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from raymat.storage.faults import backend_errors

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Limits of retrying: exponential backoff with jitter, times in seconds."""

    total: float = 30.0
    """No retry starts later than this after the first call. 0: call once."""
    attempts: float = math.inf
    """Maximum number of calls."""
    first: float = 0.1
    """Upper limit of the first pause."""
    factor: float = 2.0
    """Growth of the limit from one pause to the next."""
    longest: float = 5.0
    """Upper limit of every pause."""

    def pauses(self, uniform: Callable[[float, float], float]) -> Iterator[float]:
        """Yield the pauses between calls, `attempts` - 1 of them, each drawn from half to all of its limit.

        Jitter keeps clients that failed together from returning together.
        """
        limit, calls = self.first, 1
        while calls < self.attempts:
            yield uniform(limit / 2, limit)
            limit, calls = min(limit * self.factor, self.longest), calls + 1

    def run(
        self,
        call: Callable[[], T],
        may_retry: Callable[[BaseException], bool],
        *,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] | None = None,
    ) -> T:
        """Return the result of `call()`, calling again while `may_retry` its storage error and the limits allow.

        Raises:
            The last storage error, as the backend raised it.
        """
        began = time.monotonic()
        pauses = self.pauses(uniform or random.Random().uniform)
        while True:
            try:
                return call()
            except backend_errors() as error:
                pause = next(pauses, None) if may_retry(error) else None
                if pause is None or time.monotonic() - began + pause > self.total:
                    raise
            sleep(pause)
