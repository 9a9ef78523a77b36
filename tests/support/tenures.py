"""Tenures of runs that nobody else drives."""

from __future__ import annotations

from collections.abc import Callable

from raymat.train.run.lease.tenure import Undisputed


class Awaited(Undisputed):
    """A tenure that tells when somebody waits for the others to leave."""

    def __init__(self, wait: Callable[[], None], name: str = "000001-aaaaaaaa") -> None:
        super().__init__(name)
        self._wait = wait

    def wait_until_alone(self) -> None:
        self._wait()
