"""A run's folder that is gone is not made anew, and what lies in its place now is left alone."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path

import pytest
import s3fs

from raymat.errors import RunGoneError, StorageError
from raymat.storage.backends import LocalBackend
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store
from tests.support.s3 import S3Server

WORD = "3f2a"


def _anchored(store: Store) -> Store:
    store.write("run.json", b'{"run_id": "3f2a"}')
    store.anchor(WORD, "run.json")
    return store


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return _anchored(Store.open(str(tmp_path / "mount/runs"), "run", retry=RetryPolicy(total=0.0)))


def test_a_folder_that_was_removed_is_not_made_anew_until_it_is_back(
    local: Store, tmp_path: Path
) -> None:
    local.write("events/a", b"1")
    shutil.move(tmp_path / "mount/runs/run", tmp_path / "elsewhere")
    for change in (lambda: local.write("events/b", b"2"), lambda: local.delete(["events/a"])):
        with pytest.raises(RunGoneError) as raised:
            change()
    assert raised.value.line == (
        f"{local.url} is gone: its run.json is missing or another run's; "
        "bring it back (is it mounted?), and the same command goes on"
    )
    assert list((tmp_path / "mount/runs").iterdir()) == []
    shutil.move(tmp_path / "elsewhere", tmp_path / "mount/runs/run")
    local.write("events/b", b"2")
    assert local.read("events/b") == b"2"


def test_a_mount_point_that_lost_its_mount_stays_empty(local: Store, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "mount/runs")
    with pytest.raises(RunGoneError):
        local.write("checkpoints/step-000000010-a001/state.json", b"{}")
    assert list((tmp_path / "mount").iterdir()) == []


def test_another_run_in_its_place_is_left_alone(local: Store) -> None:
    folder = Path(local.url)
    (folder / "run.json").write_bytes(b'{"run_id": "77aa"}')
    with pytest.raises(RunGoneError):
        local.write("events/a", b"1")
    with pytest.raises(RunGoneError):
        local.delete(["run.json"])
    assert [path.name for path in folder.iterdir()] == ["run.json"]


def test_copies_and_pickles_hold_to_it_too(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "runs"), "run")
    hasty = copy.copy(store)  # made before, as the lease's is
    _anchored(store)
    sent = pickle.loads(pickle.dumps(store))
    shutil.rmtree(tmp_path / "runs")
    for other in (hasty, sent):
        with pytest.raises(RunGoneError):
            other.write("lease/a", b"1")
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_goes_during_a_write_is_not_made_anew(local: Store, tmp_path: Path) -> None:
    backend = local.backend
    assert isinstance(backend, LocalBackend)
    local.write("a/b", b"1")
    shutil.rmtree(tmp_path / "mount/runs/run")
    with pytest.raises(FileNotFoundError):
        backend.write(str(tmp_path / "mount/runs/run/a/c"), [b"2"])
    assert not (tmp_path / "mount/runs/run").exists()


@pytest.mark.parametrize("lost", ["prefix", "bucket"])
def test_a_prefix_or_a_bucket_that_was_removed_stays_empty(s3_server: S3Server, lost: str) -> None:
    bucket = f"gone-{lost}"
    store = _anchored(s3_server.store(bucket))
    store.write("events/a", b"1")
    others = s3fs.S3FileSystem(**s3_server.options)  # as another machine would
    others.rm(bucket, recursive=True)
    if lost == "prefix":
        others.mkdir(bucket)
    with pytest.raises(RunGoneError):
        store.write("events/b", b"2")
    with pytest.raises(RunGoneError):
        store.delete(["events/a"])
    others.invalidate_cache()
    assert not others.exists(bucket) or others.find(bucket) == []


def test_storage_that_fails_is_not_called_gone(local: Store, tmp_path: Path) -> None:
    (tmp_path / "mount/runs/run/run.json").unlink()
    (tmp_path / "mount/runs/run/run.json").mkdir()
    with pytest.raises(StorageError) as raised:
        local.write("events/a", b"1")
    assert not isinstance(raised.value, RunGoneError)


def test_without_an_anchor_a_folder_is_made(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "runs"), "run")
    store.write("a", b"1")
    shutil.rmtree(tmp_path / "runs")
    store.write("a", b"1")
    assert store.read("a") == b"1"
