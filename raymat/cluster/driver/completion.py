"""Whether a run is complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymat.checkpoint.catalog import newest, newest_extra, scan
from raymat.storage.store import Store
from raymat.train.loop.state import stopped_in
from raymat.train.run.prepare import PreparedRun


def is_complete(store: Store, run: PreparedRun) -> bool:
    """Whether a checkpoint verifies that is at or past the run's last step, or at which it stopped
    early. Read only where one is listed: a run that is to be called complete is believed no more than
    one that is to go on."""
    total = run.order.total_steps
    if completed_step(store) < total and not stopped_early(store, run):
        return False
    found = newest(store, run.run_id)
    if found is None:
        return False
    checkpoint, snapshot = found
    return checkpoint.step >= total or _verdict(run, snapshot.extra) is not None


def stopped_early(store: Store, run: PreparedRun) -> str | None:
    """Why the run's newest checkpoint is its last one, though before its length; None if it is not."""
    if not run.config.length.early_stop_patience:
        return None  # and nothing is read
    return _verdict(run, newest_extra(store, scan(store)))


def _verdict(run: PreparedRun, extra: Mapping[str, Any]) -> str | None:
    """Why a run whose checkpoint holds `extra` has stopped before its length, if it has."""
    if not extra or extra["step"] >= run.order.total_steps:
        return None
    return stopped_in(extra, run.config, run.order.lineage)


def completed_step(store: Store) -> int:
    """The step of the newest checkpoint that a listing shows as committed, 0 where there is none."""
    return max((s.id.step for s in scan(store) if s.state == "committed"), default=0)
