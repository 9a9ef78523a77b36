"""What copies of a run save under one name is never believed as one checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import CheckpointId, FileEntry, Manifest
from raymat.errors import CheckpointError
from raymat.storage.digest import digest
from raymat.storage.store import Store
from tests.support import runs
from tests.support.workers import in_workers


def train(folder: Path, steps: int) -> runs.RunConfig:
    config = runs.tiny(folder, "run", steps=steps, keep=1, valid_examples=0, workers=2)
    in_workers(2, runs.train, config)
    return config


def test_the_shares_of_two_copies_of_a_run_are_no_checkpoint(tmp_path: Path) -> None:
    train(tmp_path / "a", 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (runs.store_of(train(tmp_path / copy, 4)) for copy in "ab")
    mixed = CheckpointId(4, 2)
    assert [s.id for s in scan(a)] == [s.id for s in scan(b)] == [mixed]
    for name in ("shard-00001-of-00002.safetensors", "manifest-00001-of-00002.json"):
        path = f"checkpoints/{mixed}/{name}"
        a.write(path, b.read(path))
    skipped: list[str] = []
    assert newest(a, on_skip=lambda _, why: skipped.append(why)) is None
    assert skipped == [f"{mixed} is damaged: its manifests are of different savings"]


def test_each_attempt_has_a_word_of_its_own_and_all_of_its_manifests_have_it(
    tmp_path: Path,
) -> None:
    config = runs.tiny(tmp_path, "run", valid_examples=0, workers=2)
    in_workers(2, runs.train, config)
    words = _words(runs.store_of(config))
    assert len(words) == 1
    in_workers(2, runs.train, runs.tiny(tmp_path, "run", valid_examples=0, workers=2, steps=10))
    assert len(_words(runs.store_of(config))) == 2
    assert all(len(word) == 16 for word in words)


def _words(store: Store) -> set[str]:
    paths = [f.path for f in store.list("checkpoints") if "/manifest-" in f.path]
    assert len(paths) >= 8
    return {Manifest.from_json(store.read(path)).word for path in paths}


def test_a_manifest_with_a_word_is_read_to_the_byte_and_one_without_as_before() -> None:
    entries = ("shard-00000-of-00001.safetensors", "state.json")
    files = tuple(FileEntry(name, 3, digest([b"abc"])) for name in entries)
    old = Manifest("r", CheckpointId(10, 1), 0, 1, files)
    new = Manifest("r", CheckpointId(10, 1), 0, 1, files, "0123456789abcdef")
    quick = tuple(FileEntry(name, 3, digest([b"abc"], "blake3")) for name in entries)
    newest = Manifest("r", CheckpointId(10, 1), 0, 1, quick, "0123456789abcdef")
    assert b'"format":1' in old.to_json()
    assert b'"format":2' in new.to_json()
    assert b'"format":3' in newest.to_json()
    assert [Manifest.from_json(m.to_json()) for m in (old, new, newest)] == [old, new, newest]
    with pytest.raises(CheckpointError):
        Manifest.from_json(new.to_json().replace(b"0123456789abcdef", b"0123456789abcdee"))
