"""Where a run goes on: at the newest checkpoint in storage that is whole, whatever anybody else remembers of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from raymat.checkpoint.find import newest, scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import read_checkpoint
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.store import Store
from raymat.errors import CheckpointError, RaymatError
from raymat.train.group import Group
from raymat.train.schedule import Schedule
from raymat.train.state import Promise, Record, install, require_place
from raymat.train.step import TrainStep

OnSkip = Callable[[CheckpointId, str], None]


@dataclass(frozen=True)
class Found:
    """What rank 0 decided for all: the checkpoint to go on from, or none, or why the run cannot go on."""

    checkpoint: CheckpointId | None = None
    error: RaymatError | None = None


def restore(
    step: TrainStep,
    store: Store,
    group: Group,
    *,
    run_id: str,
    promise: Promise,
    schedule: Schedule,
    on_skip: OnSkip,
) -> tuple[CheckpointId | None, Record]:
    """Put the newest verified checkpoint of the run into `step`, the same one on every worker.

    Rank 0 looks for it and calls `on_skip` for each newer one that is torn or damaged; the others read the one it names.
    Called by all workers; raises on all of them. Without any checkpoint nothing is changed: (None, a new Record).

    Raises:
        ConfigError, DataError: the checkpoint was made with another configuration or dataset.
        StorageError: storage cannot be read.
    """
    snapshot: Snapshot | None = None
    found = Found()
    if group.leads:
        found, snapshot = _look(store, run_id, promise, on_skip)
    found = group.from_lead(found)
    if found.error is not None:
        raise found.error
    if found.checkpoint is None:
        return None, Record()
    record, error = None, None
    try:
        snapshot = snapshot or read_checkpoint(store, found.checkpoint, run_id)
        record = install(step, snapshot.tensors, snapshot.extra)
        require_place(record, schedule)
    except RaymatError as raised:
        error = raised
    group.raise_together(error)
    assert record is not None
    return found.checkpoint, record


def _refuse_to_start_over(store: Store) -> None:
    """Training from the first weights again would hide that whole checkpoints are lost.

    Raises:
        CheckpointError: there are complete checkpoints, but none of them verifies.
    """
    complete = [status for status in scan(store) if status.state == "committed"]
    if complete:
        raise CheckpointError(
            f"none of the {len(complete)} complete checkpoints of {store.url} verifies (its events "
            "say why): restore them from a copy, or move checkpoints/ away to start over"
        )


def _look(
    store: Store, run_id: str, promise: Promise, on_skip: OnSkip
) -> tuple[Found, Snapshot | None]:
    """Rank 0's part. An error is handed on instead of raised: the others wait for the decision."""
    try:
        pair = newest(store, run_id, on_skip)
        if pair is None:
            _refuse_to_start_over(store)
            return Found(), None
        promise.refuse(pair[1].extra)
        return Found(pair[0]), pair[1]
    except RaymatError as error:
        return Found(error=error), None
