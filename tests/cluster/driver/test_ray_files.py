"""What Ray Train's controller writes goes through the run's store, and can fail without ending anything."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow.fs
import pytest
from ray.train.v2._internal.constants import (
    CHECKPOINT_MANAGER_SNAPSHOT_FILENAME,
    VALIDATE_STORAGE_MARKER_FILENAME,
)
from ray.train.v2._internal.execution.storage import StorageContext

from raymat.cluster.driver import ray_files
from raymat.cluster.driver.ray_files import LEDGER, MARKER, RayFiles
from raymat.storage.store import Store
from tests.support.fault_proxy import FaultProxy
from tests.support.s3 import S3Server


def context(store: Store) -> StorageContext:
    """The storage as Ray's controller makes it of a trainer's."""
    return StorageContext(store.root, "checkpoints", pyarrow.fs.PyFileSystem(RayFiles(store)))


def test_ray_s_files_have_the_names_that_are_handled() -> None:
    assert LEDGER == CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    assert MARKER == VALIDATE_STORAGE_MARKER_FILENAME


def test_the_ledger_is_written_into_the_run_and_never_read(store: Store) -> None:
    ray = context(store)
    with ray.storage_filesystem.open_output_stream(ray.checkpoint_manager_snapshot_path) as file:
        file.write(b"{}")
    assert store.read(f"checkpoints/{LEDGER}") == b"{}"
    found = ray.storage_filesystem.get_file_info(ray.checkpoint_manager_snapshot_path)
    assert found.type == pyarrow.fs.FileType.NotFound


def test_a_checkpoint_that_ray_knows_can_be_copied_from_the_storage(
    store: Store, tmp_path: Path
) -> None:
    store.write("checkpoints/step-000000001-a001/shard", b"bytes")
    ray = context(store)
    (tmp_path / "copy").mkdir()
    pyarrow.fs.copy_files(
        f"{ray.experiment_fs_path}/step-000000001-a001",
        str(tmp_path / "copy"),
        source_filesystem=pickle.loads(pickle.dumps(ray.storage_filesystem)),
    )
    assert (tmp_path / "copy" / "shard").read_bytes() == b"bytes"


def test_two_copies_of_ray_s_file_system_are_the_same_to_ray(store: Store) -> None:
    ray = context(store).storage_filesystem
    assert ray == pickle.loads(pickle.dumps(ray))


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (503, "SlowDown")])
def test_storage_that_fails_lets_ray_s_controller_go_on(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    monkeypatch.setattr(ray_files, "PATIENCE_SECONDS", 0.2)
    s3_server.store(f"ray-files-{status}")
    with FaultProxy(s3_server) as proxy:
        options = s3_server.options | {"endpoint_url": proxy.endpoint}
        store = Store.open(f"s3://ray-files-{status}/runs", "run", options=options)
        proxy.fail_all(status, code)
        ray = context(store)
        path = ray.checkpoint_manager_snapshot_path
        with ray.storage_filesystem.open_output_stream(path) as file:
            file.write(b"{}")
        assert proxy.counts["outage"] > 0
        proxy.heal()
        assert store.list() == []
