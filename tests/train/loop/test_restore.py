"""Any number of workers reads what any other number wrote: together, each byte once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import read_contents
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.distributed.collectives import Group
from raymat.distributed.world import World
from raymat.errors import CheckpointError, StorageError
from raymat.storage.store import Store
from raymat.train.loop.restore import iter_candidates, read_together
from tests.support.workers import in_workers

OLD, NEW = CheckpointId(10, 1), CheckpointId(20, 1)
BYTES = 4 * (50_000 * 40 + sum(range(40)))


def state(step: int) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(step)
    return {f"t{i}": torch.randn(50_000 + i, generator=made) for i in range(40)}


def write(storage: Path, world: int) -> Store:
    store = Store.open(str(storage), "run")
    for checkpoint in (OLD, NEW):
        snapshot = Snapshot.take(checkpoint.step, state(checkpoint.step), {"at": checkpoint.step})
        for rank in range(world):
            write_share(store, checkpoint, snapshot, World(rank, world), "r")
    return store


class CountingStore:
    """A store that counts the bytes that are read from its files."""

    def __init__(self, store: Store) -> None:
        self.store, self.bytes = store, 0

    def read_into(self, path: str, offset: int, view: memoryview) -> None:
        self.bytes += len(view)
        self.store.read_into(path, offset, view)


def read_newest(world: World, storage: str) -> tuple[int, bool, int, int]:
    """(step, whether the state is that step's to the bit, bytes read by this rank, bytes in the files)."""
    store = Store.open(storage, "run")
    contents = read_contents(store, NEW, "r")
    counting: Any = CountingStore(store)
    snapshot, _ = read_together(counting, Group(world, torch.device("cpu")), contents)
    expected = state(20)
    same = expected.keys() == snapshot.tensors.keys() and all(
        torch.equal(expected[name], tensor) for name, tensor in snapshot.tensors.items()
    )
    return snapshot.extra["at"], same, counting.bytes, contents.bytes


@pytest.mark.slow
@pytest.mark.parametrize("readers", [1, 2, 3, 6])
def test_what_four_wrote_is_read_to_the_bit_each_byte_once_and_in_equal_parts(
    tmp_path: Path, readers: int
) -> None:
    write(tmp_path, 4)
    found = in_workers(readers, read_newest, str(tmp_path))
    assert [(step, same) for step, same, _, _ in found] == [(20, True)] * readers
    total = found[0][3]
    assert BYTES < total < BYTES + 20_000
    read = [count for _, _, count, _ in found]
    assert sum(read) == total
    assert max(read) <= 1.3 * total / readers + 2**16


def take(world: World, storage: str) -> tuple[int | None, list[tuple[int, str]], str]:
    """The step that the workers took, what rank 0 was told to have skipped, and the error."""
    store, group = Store.open(storage, "run"), Group(world, torch.device("cpu"))
    skipped: list[tuple[int, str]] = []
    candidates = iter_candidates(store, "r", lambda c, why: skipped.append((c.step, why)))
    while True:
        try:
            contents = group.on_lead(lambda: next(candidates, None))
        except CheckpointError as error:
            return None, skipped, error.line
        if contents is None:
            return None, skipped, ""
        try:
            return read_together(store, group, contents)[0].step, skipped, ""
        except CheckpointError as error:
            skipped.append((contents.checkpoint.step, error.line))


def test_damage_that_any_worker_could_find_is_refused_by_all(tmp_path: Path) -> None:
    store = write(tmp_path, 3)
    path = f"checkpoints/{NEW}/shard-00002-of-00003.safetensors"
    data = bytearray(store.read(path))
    data[-1] ^= 1
    store.write(path, bytes(data))
    for rank, (step, skipped, _) in enumerate(in_workers(2, take, str(tmp_path))):
        assert step == 10, rank
        ((at, why),) = skipped
        assert (at, "shard-00002-of-00003.safetensors has another digest" in why) == (20, True)


def test_nobody_starts_over_where_checkpoints_are_all_damaged(tmp_path: Path) -> None:
    store = write(tmp_path, 2)
    for checkpoint in (OLD, NEW):
        path = f"checkpoints/{checkpoint}/state.json"
        store.write(path, store.read(path).replace(b"at", b"ta"))
    for step, _, error in in_workers(2, take, str(tmp_path)):
        assert step is None
        assert "none of the 2 complete checkpoints" in error


def fail_on_one(world: World, storage: str) -> Any:
    """Rank 0 finds the checkpoint torn while rank 1's storage fails."""
    store = Store.open(storage, "run")
    contents = read_contents(store, NEW, "r")

    class Failing:
        def read_into(self, path: str, offset: int, view: memoryview) -> None:
            raise CheckpointError("torn") if world.rank == 0 else StorageError("away")

    failing: Any = Failing()
    return read_together(failing, Group(world, torch.device("cpu")), contents)


def test_storage_that_fails_for_one_is_no_reason_to_take_an_older_one(tmp_path: Path) -> None:
    write(tmp_path, 2)
    for error in in_workers(2, fail_on_one, str(tmp_path)):
        assert isinstance(error, StorageError)
        assert error.line == "away"
