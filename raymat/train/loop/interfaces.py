"""The two seams of the training loop: where its batches come from, and who is told how it goes."""

from __future__ import annotations

from typing import Any, Protocol

from raymat.checkpoint.manifest import CheckpointId
from raymat.train.loop.watchdog import Activity, Heartbeat
from raymat.train.observability.progress import Progress
from raymat.train.run.notice import Notice


class Host(Protocol):
    """Whoever runs the training loop."""

    def restored(self, checkpoint: CheckpointId | None) -> None:
        """Training goes on from `checkpoint`, or begins. Called once by every worker."""

    def committed(self, checkpoint: CheckpointId, metrics: dict[str, Any]) -> None:
        """`checkpoint` is committed. Called by every worker at the same step, when none of them is busy; must return at
        once. Of several that were committed while one was busy only the newest is told.
        """

    def busy(self) -> bool:
        """Whether this worker still deals with what `committed` told it."""

    def notice(self) -> Notice | None:
        """What this worker has heard and that still holds; asked in every step, must return at once."""

    def progress(self, progress: Progress) -> None:
        """Called by rank 0 after logged steps and commits; must return at once."""

    def event(self, event: dict[str, Any]) -> None:
        """An event that this worker writes to the run's log; must return at once."""

    def attend(self, pulse: Heartbeat) -> None:
        """What this worker does can be seen there, at any time. Called once, before anything else."""

    def stuck(self, doing: Activity) -> None:
        """This worker's training thread stands still, for longer than it may: end the process, if somebody starts it anew.

        Called in a thread of its own.
        """

    def ended(self) -> None:
        """Training is over, by every worker's own account: wait for what `committed` began."""


class NullHost:
    """A host that needs to know nothing."""

    def restored(self, checkpoint: CheckpointId | None) -> None:
        return

    def committed(self, checkpoint: CheckpointId, metrics: dict[str, Any]) -> None:
        return

    def busy(self) -> bool:
        return False

    def notice(self) -> Notice | None:
        return None

    def progress(self, progress: Progress) -> None:
        return

    def event(self, event: dict[str, Any]) -> None:
        return

    def attend(self, pulse: Heartbeat) -> None:
        return

    def stuck(self, doing: Activity) -> None:
        return

    def ended(self) -> None:
        return
