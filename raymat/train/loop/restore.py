"""Restores a run from its newest checkpoint in storage that is whole; nothing else says where the run stands.

A shard of which a worker's machine has kept a copy is read there. Of the other bytes each worker reads an equal part
from storage, whoever wrote them. All get what they did not read from the workers that did; then each checks every
digest for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from raymat.checkpoint.catalog import require_committed, scan
from raymat.checkpoint.local_cache import LocalCache, assign_copies
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import CheckpointReader, Contents, read_contents
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.state_dict import EMA, MODEL
from raymat.distributed.collectives import Group
from raymat.errors import CheckpointError, NewerFormatError
from raymat.model.weights_content import nonfinite
from raymat.storage.store import Store
from raymat.train.loop.attempt import Attempt
from raymat.train.loop.state import RunState, install, require_place
from raymat.train.loop.train_step import TrainStep
from raymat.train.run.arithmetic import Arithmetic
from raymat.train.run.commit_interval import Experience

OnSkip = Callable[[CheckpointId, str], None]


@dataclass(frozen=True)
class Restored:
    """Where the run goes on."""

    checkpoint: CheckpointId | None = None
    state: RunState = field(default_factory=RunState)
    nearby_bytes: int = 0
    """Of the checkpoint's files: read from the workers' own disks."""
    storage_bytes: int = 0
    arithmetic: Arithmetic | None = None
    """What the checkpoint's last bits depend on; None: it does not say."""


def restore(
    attempt: Attempt,
    step: TrainStep,
    on_skip: OnSkip,
    cache: LocalCache | None = None,
    on_found: Callable[[int], None] = lambda step: None,
) -> Restored:
    """Put the newest verified checkpoint of the run into `step`, the same one on every worker.

    Rank 0 looks for it and calls `on_skip` for each newer one that is torn or damaged, whichever worker found that out,
    or whose weights hold NaN or infinity.
    `cache`: this machine's copies; those of other checkpoints are removed. `on_found`: told the step at which the run will
    go on, before the checkpoint is read; told again if that one is damaged. Called by all workers; raises on all of
    them. Without any checkpoint nothing is changed.

    Raises:
        ConfigError, DataError: the checkpoint was made with another configuration or dataset.
        NewerFormatError: a newer raymat has written to the run.
        CheckpointError: there are complete checkpoints, but none of them verifies. StorageError: storage cannot be read.
    """
    store, group = attempt.store, attempt.group
    candidates = iter_candidates(store, attempt.run.run_id, on_skip)
    while True:
        # Rank 0 alone lists the storage: two listings may differ, and the workers must read the same checkpoint.
        contents = group.on_lead(lambda: next(candidates, None))
        on_found(0 if contents is None else contents.checkpoint.step)
        if contents is None:
            if cache is not None:
                cache.forget_all_but(())
            return Restored(state=_first_state(attempt))
        try:
            snapshot, near = read_together(store, group, contents, cache)
            # The same on all workers: each holds the whole checkpoint.
            _require_finite(snapshot, contents.checkpoint)
        except NewerFormatError:
            raise
        except CheckpointError as error:
            if group.leads:
                on_skip(contents.checkpoint, error.line)
            continue
        attempt.contract.refuse(snapshot.extra)
        state = install(step, snapshot.tensors, snapshot.extra)
        ended = attempt.number - contents.checkpoint.attempt
        state.experience = state.experience.after_attempts(ended)
        require_place(state, attempt.schedule)
        if cache is not None:
            cache.forget_all_but(contents.files)
        before = Arithmetic.read(snapshot.extra.get("arithmetic"))
        return Restored(contents.checkpoint, state, near, contents.bytes - near, before)


def _first_state(attempt: Attempt) -> RunState:
    """Return the state of a run of which nothing is committed: all earlier attempts were lost."""
    return RunState(experience=Experience().after_attempts(attempt.number - 1))


def _require_finite(snapshot: Snapshot, checkpoint: CheckpointId) -> None:
    weights = {n: t for n, t in snapshot.tensors.items() if n.startswith((MODEL, EMA))}
    fault = nonfinite(weights)
    if fault is not None:
        raise CheckpointError(f"{checkpoint} cannot be resumed: {fault}")


def read_together(
    store: Store, group: Group, contents: Contents, cache: LocalCache | None = None
) -> tuple[Snapshot, int]:
    """Read the state in a checkpoint, on every worker, each byte of it once; return it, and how many bytes were nearby.

    Called by all workers; raises on all of them. Memory: one copy of the checkpoint on each.

    Raises:
        CheckpointError: it is torn or damaged. StorageError: storage cannot be read.
    """
    reading, world = CheckpointReader(contents), group.world
    near = _read_cached(reading, group, cache)
    rest = contents.only({entry.name for entry in contents.files}.difference(*near))
    parts = rest.chunks(world.size)
    # All must have read their parts before they exchange them: who failed would leave the others in a broadcast.
    group.on_all(lambda: reading.read(store, parts[world.rank]))
    for reader, (names, chunks) in enumerate(zip(near, parts, strict=True)):
        (whole,) = contents.only(names).chunks()
        for chunk in whole + chunks:
            group.spread(reading.place(chunk), reader)
    return group.on_all(reading.finish), contents.bytes - rest.bytes


def _read_cached(
    reading: CheckpointReader, group: Group, cache: LocalCache | None
) -> list[frozenset[str]]:
    """Read copies from the workers' disks; return the files that each rank has read with the right digest."""
    files = reading.contents.files
    held = group.gather(cache.held(files) if cache is not None else frozenset())
    mine = assign_copies(files, held)[group.world.rank]
    return group.gather(reading.read_cached(cache, mine) if cache is not None else frozenset())


def iter_candidates(store: Store, run_id: str, on_skip: OnSkip) -> Iterator[Contents]:
    """Yield what may be worth reading, newest first; for rank 0.

    Raises:
        NewerFormatError: a newer raymat wrote the next one.
        CheckpointError: at the end, if there were complete checkpoints and none was taken. Training from the first
            weights again would hide that they are lost.
    """
    statuses = scan(store)
    for status in statuses:
        try:
            require_committed(store, status)
            contents = read_contents(store, status.id, run_id, files=status.files)
        except NewerFormatError:
            # To go on from an older one would train again what the newer raymat has trained, and delete its work.
            raise
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
