"""Where a run goes on: at the newest checkpoint in storage that is whole, whatever anybody else remembers of it.

A shard of which a worker's machine has kept a copy is read there. Of the other bytes each worker reads an equal part
from storage, whoever wrote them. All get what they did not read from the workers that did; then each checks every
digest for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raymat.checkpoint.catalog import scan
from raymat.checkpoint.local_cache import LocalCache, assign_copies
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import CheckpointReader, Contents, read_contents
from raymat.checkpoint.snapshot import Snapshot
from raymat.distributed.collectives import Group
from raymat.errors import CheckpointError, RaymatError
from raymat.storage.store import Store
from raymat.train.loop.schedule import Schedule
from raymat.train.loop.state import ResumeContract, RunState, install, require_place
from raymat.train.loop.train_step import TrainStep

OnSkip = Callable[[CheckpointId, str], None]


@dataclass(frozen=True)
class Found:
    """What rank 0 proposes to all: the checkpoint to go on from, or none, or why the run cannot go on."""

    contents: Contents | None = None
    error: RaymatError | None = None


@dataclass(frozen=True)
class Restored:
    """Where the run goes on."""

    checkpoint: CheckpointId | None = None
    record: RunState = field(default_factory=RunState)
    nearby_bytes: int = 0
    """Of the checkpoint's files: read from the workers' own disks."""
    storage_bytes: int = 0


def restore(
    step: TrainStep,
    store: Store,
    group: Group,
    *,
    run_id: str,
    promise: ResumeContract,
    schedule: Schedule,
    on_skip: OnSkip,
    local_cache: LocalCache | None = None,
) -> Restored:
    """Put the newest verified checkpoint of the run into `step`, the same one on every worker.

    Rank 0 looks for it and calls `on_skip` for each newer one that is torn or damaged, whichever worker found that out.
    `local_cache`: this machine's copies; those of other checkpoints are removed. Called by all workers; raises on all of
    them. Without any checkpoint nothing is changed.

    Raises:
        ConfigError, DataError: the checkpoint was made with another configuration or dataset.
        CheckpointError: there are complete checkpoints, but none of them verifies. StorageError: storage cannot be read.
    """
    candidates = _candidates(store, run_id, on_skip)
    while True:
        found = group.from_lead(_next(candidates) if group.leads else None)
        if found.error is not None:
            raise found.error
        if found.contents is None:
            if local_cache is not None:
                local_cache.forget_all_but(())
            return Restored()
        checkpoint = found.contents.checkpoint
        try:
            snapshot, near = read_together(store, group, found.contents, local_cache)
        except CheckpointError as error:
            if group.leads:
                on_skip(checkpoint, error.line)
            continue
        promise.refuse(snapshot.extra)
        record = install(step, snapshot.tensors, snapshot.extra)
        require_place(record, schedule)
        if local_cache is not None:
            local_cache.forget_all_but(found.contents.files)
        return Restored(checkpoint, record, near, found.contents.bytes - near)


def read_together(
    store: Store, group: Group, contents: Contents, local_cache: LocalCache | None = None
) -> tuple[Snapshot, int]:
    """The state in a checkpoint, on every worker, each byte of it read once; and how many of them were cached on this machine.

    Called by all workers; raises on all of them. Memory: one copy of the checkpoint on each.

    Raises:
        CheckpointError: it is torn or damaged. StorageError: storage cannot be read.
    """
    reading, world = CheckpointReader(contents), group.world
    near = _read_cached(reading, group, local_cache)
    rest = contents.only({entry.name for entry in contents.files}.difference(*near))
    parts = rest.chunks(world.size)
    error: RaymatError | None = None
    try:
        reading.read(store, parts[world.rank])
    except RaymatError as raised:
        error = raised
    group.raise_together(error)
    for reader, (names, chunks) in enumerate(zip(near, parts, strict=True)):
        (whole,) = contents.only(names).chunks()
        for chunk in whole + chunks:
            group.spread(reading.place(chunk), reader)
    snapshot: Snapshot | None = None
    try:
        snapshot = reading.finish()
    except RaymatError as raised:
        error = raised
    group.raise_together(error)
    assert snapshot is not None
    return snapshot, contents.bytes - rest.bytes


def _read_cached(
    reading: CheckpointReader, group: Group, local_cache: LocalCache | None
) -> list[frozenset[str]]:
    """The files that each rank has read from its disk, the digests being right. Called by all workers."""
    files = reading.contents.files
    held = group.gather(local_cache.held(files) if local_cache is not None else frozenset())
    mine = assign_copies(files, held)[group.world.rank]
    return group.gather(
        reading.read_cached(local_cache, mine) if local_cache is not None else frozenset()
    )


def _candidates(store: Store, run_id: str, on_skip: OnSkip) -> Iterator[Contents]:
    """For rank 0: what may be worth reading, newest first, until a taker stops asking.

    Raises:
        CheckpointError: there were complete checkpoints, and nobody took one. Training from the first weights again would
            hide that they are lost.
    """
    statuses = scan(store)
    for status in statuses:
        try:
            if status.state == "torn":
                raise CheckpointError(status.reason)
            contents = read_contents(store, status.id, run_id, files=status.files)
        except CheckpointError as error:
            on_skip(status.id, error.line)
            continue
        yield contents
    complete = sum(status.state == "committed" for status in statuses)
    if complete:
        raise CheckpointError(
            f"none of the {complete} complete checkpoints of {store.url} verifies (its events "
            "say why): restore them from a copy, or move checkpoints/ away to start over"
        )


def _next(candidates: Iterator[Contents]) -> Found:
    """The next proposal. An error is handed on instead of raised: the others wait for the decision."""
    try:
        return Found(next(candidates, None))
    except RaymatError as error:
        return Found(error=error)
