"""What holding a run's lease means to those who write what a run shares, without the lease itself."""

from __future__ import annotations

from typing import Protocol


class Tenure(Protocol):
    """One driver's time as the holder of a run's lease."""

    @property
    def name(self) -> str:
        """Names this holding and no other ever; later holdings have larger names (`term_of`)."""

    def require(self) -> None:
        """Raise LeaseLostError if another driver has the run. Asks the storage; raises StorageError."""

    def wait_until_alone(self) -> None:
        """Return when no worker of an earlier holder trains any more."""


class Undisputed:
    """The tenure of whoever opens a run that no other process opens at the same time: tests and tools."""

    def __init__(self, name: str) -> None:
        self.name = name

    def require(self) -> None:
        """See `Tenure`."""

    def wait_until_alone(self) -> None:
        """See `Tenure`."""
