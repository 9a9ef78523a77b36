"""Where a run stands by what its storage shows, and whether it is complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymat.checkpoint.catalog import Status, newest, newest_extra, scan
from raymat.checkpoint.state_dict import require_state
from raymat.config.run import RunConfig
from raymat.data.sample_order import SampleOrder
from raymat.storage.store import Store
from raymat.train.validation.criteria import Validation, stop_reason, validations_of


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands by a listing of its checkpoints and by the newest one's small file."""

    step: int
    """Of the newest checkpoint that the listing shows as committed; 0 where there is none."""
    stopped: str | None
    """Why it is the run's last one, though before its length; None if it is not."""
    substitutes: int = 0
    """Examples trained with a substitute for a picture that cannot be read."""
    validations: tuple[Validation, ...] = ()
    """Recorded in the newest checkpoint, by step."""


def committed_step(statuses: Sequence[Status]) -> int:
    """Return the step of the newest committed checkpoint, 0 where there is none."""
    return max((s.id.step for s in statuses if s.state == "committed"), default=0)


def read_committed_step(store: Store) -> int:
    """Scan the run for the step of its newest committed checkpoint, 0 where there is none."""
    return committed_step(scan(store))


def read_status(
    store: Store, config: RunConfig, order: SampleOrder, statuses: Sequence[Status]
) -> RunStatus:
    """Find out where the run stands; `statuses` are its checkpoints, newest first.

    Raises:
        StorageError: the storage cannot be read.
    """
    extra = newest_extra(store, statuses)
    if extra:
        require_state(extra, ("step",))
    stopped = _stopped(extra, config, order) if config.length.early_stop_patience else None
    validations = tuple(validations_of(extra))
    substitutes = int(extra.get("substitutes", 0))
    return RunStatus(committed_step(statuses), stopped, substitutes, validations)


def is_complete(
    store: Store,
    run_id: str,
    status: RunStatus,
    config: RunConfig,
    order: SampleOrder,
    statuses: Sequence[Status],
) -> bool:
    """Tell whether a checkpoint verifies that is at or past the run's last step, or at which the run stopped early.

    Checkpoints are read only where `status` says that one is: a listing is believed no more of a complete run than of one
    that goes on.
    """
    total = order.total_steps
    if status.step < total and status.stopped is None:
        return False
    found = newest(store, run_id, statuses=statuses)
    if found is None:
        return False
    checkpoint, snapshot = found
    require_state(snapshot.extra, ("step",))
    return checkpoint.step >= total or _stopped(snapshot.extra, config, order) is not None


def _stopped(extra: Mapping[str, Any], config: RunConfig, order: SampleOrder) -> str | None:
    """Why a run whose checkpoint holds `extra` has stopped before its length, if it has."""
    if not extra or extra["step"] >= order.total_steps:
        return None
    if extra.get("pending_validation") is not None:
        return None  # its result may be the best yet
    return stop_reason(config, validations_of(extra), order.lineage)
