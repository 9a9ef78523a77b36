"""Real files of a real checkpoint, damaged: always found, never loaded, the older one taken
instead."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.distributed.world import World
from raymat.storage.store import Store

CASES_PER_KIND = 112
OLD, MIDDLE, NEW = CheckpointId(10, 1), CheckpointId(20, 1), CheckpointId(30, 2)
WORLD = 2


def flip_a_bit(folder: Path, draws: random.Random) -> Path:
    path = draws.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    path.write_bytes(data)
    return path


def truncate(folder: Path, draws: random.Random) -> Path:
    path = draws.choice(sorted(folder.iterdir()))
    path.write_bytes(path.read_bytes()[: draws.randrange(path.stat().st_size)])
    return path


def lengthen(folder: Path, draws: random.Random) -> Path:
    path = draws.choice(sorted(folder.iterdir()))
    path.write_bytes(path.read_bytes() + draws.choice([b"\0", b"\n", b" ", b"x" * 1000]))
    return path


def fill_with_zeros(folder: Path, draws: random.Random) -> Path:
    """What a crash leaves on a file system that wrote the size before the data."""
    path = draws.choice(sorted(folder.iterdir()))
    data = path.read_bytes()
    keep = draws.randrange(len(data) - 8)
    path.write_bytes(data[:keep] + b"\0" * (len(data) - keep))
    return path


def delete(folder: Path, draws: random.Random) -> Path:
    path = draws.choice(sorted(folder.iterdir()))
    path.unlink()
    return path


def swap_with_another_checkpoint(folder: Path, draws: random.Random) -> Path:
    path = draws.choice(sorted(folder.iterdir()))
    other = folder.parent / str(draws.choice([OLD, MIDDLE])) / path.name
    path.write_bytes(other.read_bytes())
    return path


def swap_a_whole_rank_with_another_checkpoint(folder: Path, draws: random.Random) -> Path:
    """Shard and manifest together: their digests fit each other."""
    rank = draws.randrange(WORLD)
    for path in sorted(folder.glob(f"*-{rank:05d}-of-*")):
        path.write_bytes((folder.parent / str(MIDDLE) / path.name).read_bytes())
    return folder / f"manifest-{rank:05d}-of-{WORLD:05d}.json"


def swap_two_ranks(folder: Path, draws: random.Random) -> Path:
    kind = draws.choice(["shard", "manifest"])
    one, two = sorted(folder.glob(f"{kind}-*"))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    return one


def empty_a_file(folder: Path, draws: random.Random) -> Path:
    path = draws.choice(sorted(folder.iterdir()))
    path.write_bytes(b"")
    return path


KINDS = [
    flip_a_bit, truncate, lengthen, fill_with_zeros, delete, swap_with_another_checkpoint,
    swap_a_whole_rank_with_another_checkpoint, swap_two_ranks, empty_a_file,
]  # fmt: skip


@pytest.fixture
def three(tmp_path: Path, make_state: Any) -> Store:
    store = Store.open(str(tmp_path), "run")
    for checkpoint in (OLD, MIDDLE, NEW):
        snapshot = Snapshot.take(
            checkpoint.step, make_state(checkpoint.step), {"at": checkpoint.step}
        )
        for rank in range(WORLD):
            write_share(store, checkpoint, snapshot, World(rank, WORLD), "r")
    return store


def _newest(store: Store) -> tuple[Any, list[tuple[CheckpointId, str]]]:
    skipped: list[tuple[CheckpointId, str]] = []
    return newest(
        store, "r", lambda checkpoint, reason: skipped.append((checkpoint, reason))
    ), skipped


@pytest.mark.parametrize("damage", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_always_found_and_named_and_the_older_one_taken(
    three: Store, tmp_path: Path, damage: Callable[..., Path], make_state: Any, same: Any
) -> None:
    folder = tmp_path / "run/checkpoints" / str(NEW)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    draws = random.Random(damage.__name__)
    for _ in range(CASES_PER_KIND):
        damaged = damage(folder, draws)
        found, skipped = _newest(three)
        assert found is not None
        assert found[0] == MIDDLE
        assert same(found[1].tensors, make_state(20))
        assert found[1].extra == {"at": 20}
        assert [checkpoint for checkpoint, _ in skipped] == [NEW]
        assert damaged.name in skipped[0][1]
        assert {p.name for p in folder.iterdir()} >= {p.name for p in whole} - {damaged.name}
        for path, data in whole.items():
            path.write_bytes(data)
    assert newest(three, "r")[0] == NEW  # type: ignore[index]


def test_when_none_verifies_none_is_handed_out(three: Store, tmp_path: Path) -> None:
    for path in tmp_path.glob("run/checkpoints/*/state.json"):
        path.write_bytes(path.read_bytes().replace(b"at", b"ta"))
    skipped: list[CheckpointId] = []
    assert newest(three, "r", lambda checkpoint, _: skipped.append(checkpoint)) is None
    assert skipped == [NEW, MIDDLE, OLD]
    assert [status.state for status in scan(three)] == ["committed"] * 3


def test_a_scan_that_reads_manifests_sees_what_a_listing_cannot(
    three: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "run/checkpoints" / str(NEW)
    shard = folder / "shard-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert [s.state for s in scan(three)] == ["committed", "committed", "committed"]
    statuses = scan(three, manifests=1)
    assert [s.state for s in statuses] == ["torn", "committed", "committed"]
    assert shard.name in statuses[0].reason
