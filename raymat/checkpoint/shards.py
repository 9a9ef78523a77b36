"""Writing a checkpoint: each rank writes its share of the tensors and then a manifest of what it wrote.

    state.json                            rank 0: everything that is no tensor
    shard-00000-of-00004.safetensors      each rank: its share of the tensors
    manifest-00000-of-00004.json          each rank, last: size and digest of the files above

No file is ever changed or replaced, no rank waits for another: a checkpoint exists when all of it
is there.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import TYPE_CHECKING

from raymat.checkpoint.layout import path_of
from raymat.checkpoint.manifest import (
    MAX_BYTES,
    MAX_STATE_BYTES,
    STATE,
    STATE_FORMAT,
    CheckpointId,
    FileEntry,
    Manifest,
    manifest_name,
    shard_name,
)
from raymat.distributed.world import World
from raymat.errors import CheckpointError
from raymat.storage.digest import SHARD_ALGORITHM, Buffer, digest
from raymat.storage.store import Store

if TYPE_CHECKING:
    from torch import Tensor  # at run time late: a driver lists checkpoints without torch

    from raymat.checkpoint.snapshot import Snapshot


def assign(sizes: Mapping[str, int], world: int) -> list[list[str]]:
    """Assign names to ranks, balanced by bytes: at most the average plus one tensor each.

    Depends on the arguments alone: the largest tensor first, each to the rank that has least so far.
    """
    shares: list[list[str]] = [[] for _ in range(world)]
    loads = [(0, rank) for rank in range(world)]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(name)
        heapq.heappush(loads, (load + sizes[name], rank))
    return [sorted(share) for share in shares]


def share_of(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Return the tensors that this rank writes, of a state that every rank holds whole.

    Raises:
        CheckpointError: the state is larger than any that is read back.
    """
    sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
    total, limit = sum(sizes.values()), MAX_BYTES - MAX_STATE_BYTES
    if total > limit:
        raise CheckpointError(
            f"the state has {total} bytes of tensors, more than the {limit} that can be read back: it is not saved"
        )
    return {name: tensors[name] for name in assign(sizes, world.size)[world.rank]}


def write_share(
    store: Store,
    checkpoint: CheckpointId,
    snapshot: Snapshot,
    world: World,
    run: str,
    word: str = "",
) -> Manifest:
    """Write this rank's share of `snapshot` as part of `checkpoint` of the run with the id `run`.

    `word`: see `Origin`; all ranks must give the same one.
    Blocks until the share is durable. The checkpoint is committed when the last rank's call
    returns. Raises StorageError.
    """
    from raymat.checkpoint.snapshot import encode_extra

    return write_files(
        store,
        checkpoint,
        share_of(snapshot.tensors, world),
        encode_extra(snapshot.extra),
        world,
        run,
        word,
    )


def write_files(
    store: Store,
    checkpoint: CheckpointId,
    share: Mapping[str, Tensor],
    extra: str,
    world: World,
    run: str,
    word: str = "",
) -> Manifest:
    """Write a share that is already chosen, as `write_share`. `extra`, encoded, is written by rank 0 alone."""
    from raymat.checkpoint.safetensors_io import encode

    files: dict[str, list[Buffer]] = {shard_name(world.rank, world.size): encode(share)}
    if world.rank == 0:
        files[STATE] = [_encode_state(checkpoint, extra)]
    # Digests of the data in memory: whatever the storage makes of it is noticed.
    entries = tuple(
        FileEntry(name, sum(len(piece) for piece in pieces), digest(pieces, SHARD_ALGORITHM))
        for name, pieces in files.items()
    )
    for name, pieces in files.items():
        store.write(path_of(checkpoint, name), pieces)
    manifest = Manifest(run, checkpoint, world.rank, world.size, entries, word)
    store.write(path_of(checkpoint, manifest_name(world.rank, world.size)), manifest.to_json())
    return manifest


def _encode_state(checkpoint: CheckpointId, extra: str) -> bytes:
    return f'{{"format":{STATE_FORMAT},"step":{checkpoint.step},"extra":{extra}}}\n'.encode()
