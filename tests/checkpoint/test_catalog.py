from __future__ import annotations

import time
from typing import Any

import fsspec
import pytest

from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.distributed.world import World
from raymat.errors import StorageError
from raymat.storage.faults import MissingFileError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store


def _write(
    store: Store,
    step: int,
    attempt: int = 1,
    world: int = 1,
    run: str = "r",
    ranks: int | None = None,
) -> None:
    snapshot = Snapshot.take(step, {}, {"step": step, "attempt": attempt})
    for rank in range(world if ranks is None else ranks):
        write_share(store, CheckpointId(step, attempt), snapshot, World(rank, world), run)


def test_a_run_without_checkpoints_has_none(store: Store) -> None:
    assert scan(store) == []
    assert newest(store) is None


def test_a_scan_says_what_there_is_newest_first(memory: Store) -> None:
    _write(memory, 10, world=2)
    _write(memory, 20, attempt=1)
    _write(memory, 20, attempt=2, world=3, ranks=2)
    _write(memory, 30, world=2, ranks=1)
    memory.write("checkpoints/step-000000040-a001/shard-00000-of-00001.safetensors", b"x")
    memory.write("checkpoints/not-a-checkpoint/manifest-00000-of-00001.json", b"x")
    memory.write("checkpoints/readme.txt", b"x")
    memory.write("events/0.jsonl", b"x")
    statuses = scan(memory)
    assert [(str(s.id), s.state, s.world) for s in statuses] == [
        ("step-000000040-a001", "torn", 0),
        ("step-000000030-a001", "torn", 0),
        ("step-000000020-a002", "torn", 0),
        ("step-000000020-a001", "committed", 1),
        ("step-000000010-a001", "committed", 2),
    ]
    assert [s.reason.partition(": ")[2] for s in statuses[:3]] == [
        "no manifest", "manifest-00001-of-00002.json is missing", "manifest-00002-of-00003.json is missing",
    ]  # fmt: skip
    assert statuses[3].bytes == sum(statuses[3].files.values()) > 500
    assert abs(statuses[3].modified - time.time()) < 60


def test_the_newest_is_by_step_then_by_attempt(memory: Store) -> None:
    for step, attempt in [(5, 9), (30, 1), (30, 2), (20, 7)]:
        _write(memory, step, attempt)
    found = newest(memory)
    assert found is not None
    assert found[0] == CheckpointId(30, 2)
    assert found[1].extra == {"step": 30, "attempt": 2}


def test_torn_and_foreign_ones_are_skipped_with_the_reason(memory: Store) -> None:
    _write(memory, 10)
    _write(memory, 20, run="theirs")
    _write(memory, 30, world=2, ranks=1)
    before = memory.list()
    skipped: list[tuple[int, str]] = []
    found = newest(
        memory, "r", lambda checkpoint, reason: skipped.append((checkpoint.step, reason))
    )
    assert found is not None
    assert found[0].step == 10
    assert skipped == [
        (30, "step-000000030-a001 is torn: manifest-00001-of-00002.json is missing"),
        (20, "step-000000020-a001 is foreign: it is of run 'theirs', expected 'r'"),
    ]
    assert memory.list() == before


def test_one_that_vanishes_while_it_is_read_is_skipped(
    memory: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(memory, 10)
    _write(memory, 20)
    read = memory.read

    def vanish(path: str) -> bytes:
        if "step-000000020" in path:
            raise MissingFileError("gone")
        return read(path)

    monkeypatch.setattr(memory, "read", vanish)
    skipped: list[int] = []
    assert (
        newest(memory, on_skip=lambda checkpoint, _: skipped.append(checkpoint.step))[0].step == 10
    )  # type: ignore[index]
    assert skipped == [20]


def test_a_storage_that_fails_never_passes_for_an_older_checkpoint(memory: Store) -> None:
    _write(memory, 10)
    _write(memory, 20)
    memory.retry = RetryPolicy(attempts=3, first=0)
    read_into = memory.backend.read_into

    def fail(path: str, offset: int, view: memoryview) -> int:
        if "step-000000020" in path:
            raise PermissionError("withdrawn")
        return read_into(path, offset, view)

    memory.backend.read_into = fail  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="permission denied"):
        newest(memory)


@pytest.mark.parametrize("torn", [0, 3])
def test_the_newest_of_240_in_a_bucket_takes_at_most_10_requests(
    s3_server: Any, memory: Store, request_counter: Any, torn: int
) -> None:
    for step in range(1, 241):
        _write(memory, step * 100, world=2, ranks=1 if step > 240 - torn else 2)
    files = fsspec.filesystem("memory").store.items()
    s3_server.fill(f"prepared-{torn}", {path[1:]: file.getvalue() for path, file in files})
    store = Store.open(f"s3://prepared-{torn}/runs", "run", options=s3_server.options)
    calls = request_counter(store)
    skipped: list[CheckpointId] = []
    found = newest(store, "r", lambda checkpoint, _: skipped.append(checkpoint))
    assert found is not None
    assert (found[0].step, len(skipped)) == (24000 - 100 * torn, torn)
    # 1200 files are two pages of a listing; two manifests, two shards, one state.
    assert sorted(calls) == ["get_object"] * 5 + ["list_objects_v2"] * 2
    calls.clear()
    assert len(scan(store)) == 240
    assert calls == ["list_objects_v2"] * 2
