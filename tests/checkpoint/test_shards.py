from __future__ import annotations

import json
import math
import os
import pickle
import random
import threading
import tracemalloc
from typing import Any

import fsspec
import pytest
import torch

from raymat.checkpoint.manifest import CheckpointId, FileEntry, Manifest
from raymat.checkpoint.reader import list_files, read_checkpoint
from raymat.checkpoint.shards import assign, share_of, write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.distributed.world import World
from raymat.errors import CheckpointError, StorageError
from raymat.storage.digest import digest
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store

ID = CheckpointId(1200, 3)
FOLDER = "checkpoints/step-000001200-a003"


def _write(
    store: Store, snapshot: Snapshot, world: int, run: str = "r", checkpoint: CheckpointId = ID
) -> None:
    for rank in range(world):
        write_share(store, checkpoint, snapshot, World(rank, world), run)


def test_every_tensor_is_in_exactly_one_balanced_share() -> None:
    draws = random.Random(5)
    for _ in range(100):
        sizes = {f"t{i}": draws.choice([0, 1, 4, 1000, 10**6]) for i in range(draws.randrange(40))}
        world = draws.randrange(1, 9)
        shares = assign(sizes, world)
        assert len(shares) == world
        assert sorted(name for share in shares for name in share) == sorted(sizes)
        loads = [sum(sizes[name] for name in share) for share in shares]
        assert max(loads) <= sum(sizes.values()) / world + max(sizes.values(), default=0)
        shuffled = list(sizes.items())
        draws.shuffle(shuffled)
        assert assign(dict(shuffled), world) == shares


def test_shares_are_these() -> None:
    assert assign({"a": 5, "b": 4, "c": 3, "d": 3, "e": 0}, 2) == [["a", "d"], ["b", "c", "e"]]


@pytest.mark.parametrize("world", [1, 4])
def test_any_world_reads_what_another_wrote(
    store: Store, world: int, make_state: Any, same: Any
) -> None:
    extra = {"loss": 1 / 3, "history": [math.inf, 0.1], "nested": {"ü": None}}
    _write(store, Snapshot.take(1200, make_state(), extra), world)
    snapshot = read_checkpoint(store, ID, "r")
    assert snapshot.step == 1200
    assert same(snapshot.tensors, make_state())
    assert snapshot.extra == extra


def test_the_files_are_the_promised_ones(memory: Store, make_state: Any) -> None:
    _write(memory, Snapshot.take(1200, make_state(), {}), 3)
    assert [info.path for info in memory.list()] == [
        f"{FOLDER}/manifest-00000-of-00003.json",
        f"{FOLDER}/manifest-00001-of-00003.json",
        f"{FOLDER}/manifest-00002-of-00003.json",
        f"{FOLDER}/shard-00000-of-00003.safetensors",
        f"{FOLDER}/shard-00001-of-00003.safetensors",
        f"{FOLDER}/shard-00002-of-00003.safetensors",
        f"{FOLDER}/state.json",
    ]


def test_more_ranks_than_tensors_and_no_tensors_at_all(memory: Store, same: Any) -> None:
    for state in ({}, {"a": torch.ones(2)}):
        _write(memory, Snapshot.take(1200, state, {}), 3)
        assert same(read_checkpoint(memory, ID).tensors, state)


def test_a_manifest_is_written_after_everything_it_lists(memory: Store, make_state: Any) -> None:
    order: list[str] = []
    write = memory.backend.write
    memory.backend.write = lambda path, chunks: (
        order.append(path.rpartition("/")[2]),
        write(path, chunks),
    )[1]  # type: ignore[method-assign]
    write_share(memory, ID, Snapshot.take(1200, make_state(), {}), World(0, 2), "r")
    assert order == [
        "shard-00000-of-00002.safetensors",
        "state.json",
        "manifest-00000-of-00002.json",
    ]


def test_a_checkpoint_is_torn_until_the_last_manifest(memory: Store, make_state: Any) -> None:
    snapshot = Snapshot.take(1200, make_state(), {})
    for rank in (2, 0, 1):
        with pytest.raises(CheckpointError, match="is torn"):
            read_checkpoint(memory, ID)
        write_share(memory, ID, snapshot, World(rank, 3), "r")
    assert read_checkpoint(memory, ID).step == 1200


def test_ranks_may_write_at_the_same_time(store: Store, make_state: Any, same: Any) -> None:
    snapshot = Snapshot.take(1200, make_state(), {})
    threads = [
        threading.Thread(target=write_share, args=(store, ID, snapshot, World(rank, 4), "r"))
        for rank in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(read_checkpoint(store, ID).tensors, make_state())


def test_digests_are_of_the_bytes_that_were_meant(memory: Store, make_state: Any) -> None:
    write = memory.backend.write

    def flip(path: str, chunks: Any) -> None:
        data = bytearray(b"".join(chunks))
        if "shard" in path:
            data[-1] ^= 1
        write(path, [bytes(data)])

    memory.backend.write = flip  # type: ignore[method-assign]
    _write(memory, Snapshot.take(1200, make_state(), {}), 1)
    with pytest.raises(CheckpointError, match="another digest"):
        read_checkpoint(memory, ID)


def test_another_runs_checkpoint_is_foreign(memory: Store, make_state: Any) -> None:
    _write(memory, Snapshot.take(1200, make_state(), {}), 2, run="theirs")
    assert read_checkpoint(memory, ID).step == 1200
    with pytest.raises(CheckpointError, match="foreign: it is of run 'theirs', expected 'ours'"):
        read_checkpoint(memory, ID, "ours")


def test_shares_of_two_runs_do_not_mix(memory: Store, make_state: Any) -> None:
    snapshot = Snapshot.take(1200, make_state(), {})
    for rank, run in enumerate(["ours", "theirs"]):
        write_share(memory, ID, snapshot, World(rank, 2), run)
    with pytest.raises(CheckpointError, match="different runs"):
        read_checkpoint(memory, ID)


def test_manifests_of_two_worlds_do_not_mix(memory: Store, make_state: Any) -> None:
    snapshot = Snapshot.take(1200, make_state(), {})
    _write(memory, snapshot, 2)
    _write(memory, snapshot, 1)
    with pytest.raises(CheckpointError, match="more than one world"):
        read_checkpoint(memory, ID)


def test_a_storage_that_fails_is_not_a_damaged_checkpoint(memory: Store, make_state: Any) -> None:
    _write(memory, Snapshot.take(1200, make_state(), {}), 1)
    memory.retry = RetryPolicy(attempts=3, first=0)

    def fail(*args: Any) -> int:
        raise PermissionError("no")

    memory.backend.read_into = fail  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="permission denied") as caught:
        read_checkpoint(memory, ID)
    assert not isinstance(caught.value, CheckpointError)


def test_reading_holds_the_checkpoint_once(tmp_path: Any) -> None:
    store = Store.open(str(tmp_path), "run")
    state = {f"t{i}": torch.full((2**18,), float(i)) for i in range(20)}
    _write(store, Snapshot.take(1200, state, {}), 2)
    before = _resident()
    snapshot = read_checkpoint(store, ID)
    assert _resident() - before < 1.5 * 20 * 2**20
    assert snapshot.tensors["t7"][0] == 7


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# What strangers may send


def _forge(
    store: Store,
    shard: bytes,
    state: bytes = b'{"format":1,"step":1200,"extra":{}}',
    claim: int | None = None,
) -> None:
    """A checkpoint of world 1 whose manifest fits its files, but may claim another size of the
    shard."""
    files = {"shard-00000-of-00001.safetensors": shard, "state.json": state}
    entries = []
    for name, data in files.items():
        store.write(f"{FOLDER}/{name}", data)
        size = claim if claim is not None and name != "state.json" else len(data)
        entries.append(FileEntry(name, size, digest([data])))
    manifest = Manifest("r", ID, 0, 1, tuple(entries))
    store.write(f"{FOLDER}/manifest-00000-of-00001.json", manifest.to_json())


def _shard(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


GOOD = _shard({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0\0\x80\x3f")


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/raymat-bomb-went-off",)


def test_the_forger_of_these_tests_can_forge(memory: Store) -> None:
    _forge(memory, GOOD)
    assert read_checkpoint(memory, ID).tensors["x"].item() == 1.0


def test_pickles_are_never_opened(memory: Store, tmp_path: Any) -> None:
    torch.save({"x": Bomb()}, tmp_path / "x.pt")
    for payload in (pickle.dumps(Bomb()), (tmp_path / "x.pt").read_bytes()):
        _forge(memory, payload)
        with pytest.raises(CheckpointError, match="header"):
            read_checkpoint(memory, ID)
        _forge(memory, GOOD, payload)
        with pytest.raises(CheckpointError, match="not JSON"):
            read_checkpoint(memory, ID)
        memory.write(f"{FOLDER}/manifest-00000-of-00001.json", payload)
        with pytest.raises(CheckpointError, match="not JSON"):
            read_checkpoint(memory, ID)
    assert not os.path.exists("/tmp/raymat-bomb-went-off")


def test_a_claim_of_100_gigabytes_is_refused_unread(
    memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forge(memory, GOOD, claim=100 * 10**9)
    monkeypatch.setattr(memory, "read_into", None)
    with pytest.raises(CheckpointError, match="has 73 bytes, expected 100000000000"):
        read_checkpoint(memory, ID)


def test_a_file_of_100_gigabytes_is_refused_unread(tmp_path: Any) -> None:
    store = Store.open(str(tmp_path), "run")
    _forge(store, GOOD, claim=100 * 10**9)
    os.truncate(tmp_path / "run" / FOLDER / "shard-00000-of-00001.safetensors", 100 * 10**9)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"claims 1000000000\d\d bytes, more than"):
        read_checkpoint(store, ID)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_a_manifest_too_large_to_be_one_is_refused_unread(
    memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forge(memory, GOOD)
    memory.write(f"{FOLDER}/manifest-00000-of-00001.json", b" " * (2**20 + 1))
    monkeypatch.setattr(memory, "read", None)
    with pytest.raises(CheckpointError, match="has 1048577 bytes"):
        read_checkpoint(memory, ID)


@pytest.mark.parametrize(
    "state",
    [b"null", b"[]", b"{}", b'{"format":1,"step":1200}', b'{"format":1,"step":1199,"extra":{}}', b"[" * 10**5,
     b'{"format":2,"step":1200,"extra":{}}', b'{"format":1,"step":1200,"extra":[]}', b"\xff", b"9" * 5000],
)  # fmt: skip
def test_state_of_another_form_is_refused(memory: Store, state: bytes) -> None:
    _forge(memory, GOOD, state)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_checkpoint(memory, ID)


def test_a_tensor_in_two_shards_is_refused(memory: Store) -> None:
    for rank in range(2):
        files = {f"shard-0000{rank}-of-00002.safetensors": GOOD}
        if rank == 0:
            files["state.json"] = b'{"format":1,"step":1200,"extra":{}}'
        for name, data in files.items():
            memory.write(f"{FOLDER}/{name}", data)
        entries = tuple(FileEntry(name, len(data), digest([data])) for name, data in files.items())
        manifest = Manifest("r", ID, rank, 2, entries)
        memory.write(f"{FOLDER}/manifest-0000{rank}-of-00002.json", manifest.to_json())
    with pytest.raises(CheckpointError, match="tensor 'x' is in more than one shard"):
        read_checkpoint(memory, ID)


def test_files_that_nobody_vouches_for_are_ignored(memory: Store) -> None:
    _forge(memory, GOOD)
    memory.write(f"{FOLDER}/evil.pkl", pickle.dumps(Bomb()))
    memory.write(f"{FOLDER}/data/shard-00000-of-00001.safetensors", b"x")
    assert read_checkpoint(memory, ID).tensors.keys() == {"x"}


def test_a_listing_at_hand_saves_the_request(memory: Store) -> None:
    _forge(memory, GOOD)
    files = list_files(memory, ID)
    fsspec.filesystem("memory").find = None
    try:
        assert read_checkpoint(memory, ID, files=files).tensors.keys() == {"x"}
    finally:
        del fsspec.filesystem("memory").find


def test_a_share_is_the_ranks_own() -> None:
    state = {"a": torch.zeros(5), "b": torch.zeros(4), "c": torch.zeros(3)}
    assert [set(share_of(state, World(rank, 2))) for rank in range(2)] == [{"a"}, {"b", "c"}]
