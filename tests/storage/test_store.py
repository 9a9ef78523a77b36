from __future__ import annotations

import errno
import os
import pickle
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from raymat.checkpoint.layout import split_run_url
from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import StorageError
from raymat.storage import backends
from raymat.storage.backends import LocalBackend
from raymat.storage.faults import MissingFileError, classify
from raymat.storage.fsspec_backend import Pieces
from raymat.storage.output_files import write_file, write_output
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store, unfinished_files
from tests.support.s3 import S3Server


def test_what_is_written_is_read_and_listed(store: Store) -> None:
    store.write("a/b.bin", b"hello")
    store.write("a/c/d.bin", [b"he", memoryview(b"llo"), bytearray(b"!")])
    store.write("empty", b"")
    assert store.read("a/b.bin") == b"hello"
    assert store.read("a/c/d.bin") == b"hello!"
    assert store.read("empty") == b""
    assert [(i.path, i.size) for i in store.list()] == [
        ("a/b.bin", 5),
        ("a/c/d.bin", 6),
        ("empty", 0),
    ]
    assert [i.path for i in store.list("a/c")] == ["a/c/d.bin"]
    assert all(abs(i.modified - time.time()) < 60 for i in store.list())


def test_a_file_can_be_replaced(store: Store) -> None:
    store.write("x", b"old and longer")
    store.write("x", b"new")
    assert store.read("x") == b"new"
    assert store.list()[0].size == 3


def test_ranges_are_read_in_place(store: Store) -> None:
    store.write("x", bytes(range(100)))
    buffer = bytearray(10)
    store.read_into("x", 40, memoryview(buffer))
    assert buffer == bytes(range(40, 50))
    store.read_into("x", 0, memoryview(buffer)[:0])
    with pytest.raises(MissingFileError, match=r"ends after 100 bytes, expected 105"):
        store.read_into("x", 95, memoryview(buffer))


def test_missing_files_are_told_apart(store: Store) -> None:
    store.write("there", b"1")
    with pytest.raises(MissingFileError, match=r"cannot read .*runs/run/gone: it does not exist"):
        store.read("gone")
    with pytest.raises(MissingFileError):
        store.read_into("gone", 0, memoryview(bytearray(3)))
    assert store.try_read("gone") is None
    assert store.try_read("there") == b"1"
    assert store.list("nothing/here") == []


def test_deletion_is_idempotent(store: Store) -> None:
    for name in ("a/1", "a/2", "b"):
        store.write(name, b"x")
    store.delete(["a/1", "a/2", "never/was"])
    store.delete(["a/1", "a/2"])
    store.delete([])
    assert [i.path for i in store.list()] == ["b"]


def test_another_process_writes_are_seen(store: Store) -> None:
    other = pickle.loads(pickle.dumps(store))
    store.write("a/1", b"x")
    assert len(other.list("a")) == 1
    store.write("a/2", b"x")
    store.write("a/1", b"longer")
    assert [(i.path, i.size) for i in other.list("a")] == [("a/1", 6), ("a/2", 1)]
    other.delete(["a/2"])
    assert [i.path for i in store.list("a")] == ["a/1"]
    assert other.read("a/1") == b"longer"


def test_paths_cannot_leave_the_run(store: Store) -> None:
    for path in ("../x", "a/../../x", "/etc/passwd", "a//b", ".", "a\\b", "a\0b"):
        with pytest.raises(ValueError, match="not a path inside a run"):
            store.read(path)
        with pytest.raises(ValueError, match="not a path inside a run"):
            store.write(path, b"x")


def test_large_files_go_in_parts(
    s3_server: Any, request_counter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymat.storage.fsspec_backend._PART", 5 * 2**20)
    store = s3_server.store("parts")
    calls = request_counter(store)
    data = os.urandom(2**20) * 11
    store.write("large", [data[: 2**20], data[2**20 :]])
    assert calls.count("upload_part") == 3
    back = bytearray(len(data))
    for start in range(0, len(data), 4 * 2**20):
        store.read_into("large", start, memoryview(back)[start : start + 4 * 2**20])
    assert back == data


def test_small_reads_and_writes_are_one_request_each(s3_server: Any, request_counter: Any) -> None:
    store = s3_server.store("counted")
    calls = request_counter(store)
    store.write("a", b"123")
    store.read("a")
    store.read_into("a", 1, memoryview(bytearray(2)))
    store.list()
    store.delete(["a", "b"])
    assert calls == ["put_object", "get_object", "get_object", "list_objects_v2", "delete_objects"]


def test_local_files_are_never_seen_in_part(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    store.write("x", b"0" * 30_000)
    stop = threading.Event()
    seen: set[bytes] = set()

    def look() -> None:
        while not stop.is_set():
            seen.add(bytes(sorted(set(store.read("x")))) + str(len(store.read("x"))).encode())

    reader = threading.Thread(target=look)
    reader.start()
    for k in range(40):
        store.write("x", [str(k % 10).encode() * 1000] * 30)
    stop.set()
    reader.join()
    assert len(seen) > 1
    assert all(len(entry) == 1 + len("30000") for entry in seen)


def test_a_failed_write_leaves_nothing_and_keeps_the_old(tmp_path: Path) -> None:
    backend = LocalBackend()
    backend.write(str(tmp_path / "f"), [b"old"])
    with pytest.raises(TypeError):
        backend.write(str(tmp_path / "f"), [b"new", "not bytes"])  # type: ignore[list-item]
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


def test_what_dead_writers_left_is_not_listed(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    store.write("a/x", b"1")
    (tmp_path / "run/a/.tmp-77-abcd-x").write_bytes(b"half")
    assert [i.path for i in store.list()] == ["a/x"]
    assert [i.path for i in store.list(temporary=True)] == ["a/.tmp-77-abcd-x", "a/x"]


def test_named_pipes_and_dangling_links_are_not_files(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    store.write("a/x", b"1")
    os.mkfifo(tmp_path / "run/a/pipe")
    os.symlink("/does/not/exist", tmp_path / "run/a/link")
    os.symlink("..", tmp_path / "run/a/loop")
    assert [i.path for i in store.list()] == ["a/x"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {disk} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        store = Store.open(str(disk), "run")
        began = time.monotonic()
        with pytest.raises(
            StorageError, match=r"cannot write /.*/run/big: no space left there .*; free some"
        ):
            store.write("big", b"x" * 3_000_000)
        assert time.monotonic() - began < 10
        assert store.list(temporary=True) == []
        store.write("small", b"x")
    finally:
        os.system(f"umount {disk}")


@pytest.mark.parametrize(
    ("storage", "line"),
    [
        ("/proc/nowhere", r"cannot write /proc/nowhere/run/x: .*No such file"),
        ("{tmp}/file", r"a file lies where a folder should be"),
        ("nonsense://x", r"cannot open nonsense://x: Protocol not known"),
        (
            "s3://KEY:SECRET@bucket/runs",
            r"the URL s3://bucket/runs carries credentials; leave them out",
        ),
    ],
)
def test_bad_storage_urls_are_one_clear_line(tmp_path: Path, storage: str, line: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=line) as caught:
        Store.open(storage.format(tmp=tmp_path), "run").write("x", b"1")
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_s3_faults_are_one_clear_line_without_secrets(
    s3_server: Any, impatient: RetryPolicy
) -> None:
    def opened(url: str, **changes: Any) -> Store:
        return Store.open(url, "run", retry=impatient, options=s3_server.options | changes)

    with pytest.raises(
        StorageError, match=r"cannot write s3://nobody/run/x: there is no bucket"
    ) as caught:
        opened("s3://nobody").write("x", b"1")
    assert not isinstance(caught.value, MissingFileError)
    for call in (lambda s: s.read("x"), lambda s: s.list()):
        with pytest.raises(StorageError, match=r"there is no bucket"):
            call(opened("s3://nobody"))
    hasty = {"retries": {"max_attempts": 1}}
    gone = opened("s3://mine/runs", endpoint_url="http://127.0.0.1:9", config_kwargs=hasty)
    with pytest.raises(StorageError, match=r"does not answer .*check the network and the endpoint"):
        gone.read("x")
    s3_server.store("mine").write("x", b"1")
    s3_server.needs_signatures("mine")
    wrong = opened("s3://mine/runs", secret="WRONGWRONG")
    for call in (lambda s: s.read("x"), lambda s: s.list(), lambda s: s.write("x", b"")):
        with pytest.raises(
            StorageError, match=r"permission denied \((SignatureDoesNotMatch|403)\)"
        ) as caught:
            call(wrong)
        assert "WRONG" not in str(caught.value)


def test_errors_survive_pickling() -> None:
    error = classify(FileNotFoundError("x")).error("read", "s3://b/x")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is MissingFileError
    assert str(again) == "cannot read s3://b/x: it does not exist"


class Flaky(LocalBackend):
    """Fails the first `times` calls with `error`."""

    def __init__(self, error: BaseException, times: int) -> None:
        self.error, self.left, self.calls = error, times, 0

    def read(self, path: str) -> bytes:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise self.error
        return super().read(path)


def _flaky(
    tmp_path: Path, error: BaseException, times: int, **retry: float
) -> tuple[Store, Flaky, list[float]]:
    store = Store.open(str(tmp_path), "run", retry=RetryPolicy(**retry))
    store.write("x", b"1")
    backend, naps = Flaky(error, times), []
    store.backend, store._sleep = backend, naps.append
    return store, backend, naps


def test_transient_faults_are_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    for error in (ConnectionResetError("reset"), TimeoutError(), OSError(errno.EIO, "busy")):
        store, backend, naps = _flaky(tmp_path, error, 4, first=0.1, factor=2.0, longest=0.3)
        assert store.read("x") == b"1"
        assert backend.calls == 5
        for nap, limit in zip(naps, [0.1, 0.2, 0.3, 0.3], strict=True):
            assert limit / 2 <= nap <= limit


def test_two_stores_do_not_pause_in_step(tmp_path: Path) -> None:
    naps = [_flaky(tmp_path, TimeoutError(), 3) for _ in range(2)]
    for store, _, _ in naps:
        store.read("x")
    assert naps[0][2] != naps[1][2]


def test_patience_is_bounded(tmp_path: Path) -> None:
    store, backend, _ = _flaky(tmp_path, TimeoutError("slow"), 10**6, total=0.05, first=0.02)
    store._sleep = time.sleep
    began = time.monotonic()
    with pytest.raises(StorageError, match="does not answer"):
        store.read("x")
    assert time.monotonic() - began < 10
    assert backend.calls >= 2


def test_permanent_faults_are_not_tried_again(tmp_path: Path) -> None:
    for number in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EACCES,
        errno.EROFS,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
    ):
        store, backend, _ = _flaky(tmp_path, OSError(number, os.strerror(number)), 10**6)
        with pytest.raises(StorageError):
            store.read("x")
        assert backend.calls == 1


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://b/runs/name", ("s3://b/runs", "name", None)),
        ("s3://b/runs/name/", ("s3://b/runs", "name", None)),
        ("s3://b/name", ("s3://b", "name", None)),
        (
            "s3://b/runs/name/checkpoints/step-000001200-a003",
            ("s3://b/runs", "name", CheckpointId(1200, 3)),
        ),
        (
            "./runs/name/checkpoints/step-000001200-a003/",
            ("./runs", "name", CheckpointId(1200, 3)),
        ),
        ("name", (".", "name", None)),
        ("name/checkpoints/step-000000001-a000", (".", "name", CheckpointId(1, 0))),
        ("/name", ("/", "name", None)),
        ("/runs/checkpoints/name", ("/runs/checkpoints", "name", None)),
        ("memory://name", ("memory://", "name", None)),
        ("file:///tmp/runs/x", ("file:///tmp/runs", "x", None)),
        ("gs://b/a/checkpoints/step-1-a1", ("gs://b/a/checkpoints", "step-1-a1", None)),
    ],
)
def test_urls_split_into_storage_name_and_checkpoint(url: str, parts: tuple[Any, ...]) -> None:
    assert split_run_url(url) == parts


@pytest.mark.parametrize("url", ["", "/", "s3://bucket", "s3://", "..", "a/..", "s3://K:S@bucket"])
def test_urls_that_name_no_run_are_refused(url: str) -> None:
    with pytest.raises(StorageError, match="expected the URL of a run") as caught:
        split_run_url(url)
    assert "K:S" not in str(caught.value)


def test_pieces_are_sliced_as_if_they_were_joined() -> None:
    whole = bytes(range(100))
    pieces = Pieces([whole[:1], b"", memoryview(whole)[1:40], bytearray(whole[40:41]), whole[41:]])
    assert len(pieces) == 100
    for start in range(0, 101, 7):
        for stop in (0, start, start + 1, start + 33, 100, 200):
            assert pieces[start:stop] == whole[start:stop]
    with pytest.raises(ValueError, match="consecutive"):
        pieces[::2]


def test_a_local_file_is_the_same_whatever_windows_it_is_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bytes(range(100))
    chunks = [whole[:1], b"", memoryview(whole)[1:40], bytearray(whole[40:41]), whole[41:]]
    for window in (1, 7, 40, 41, 99, 100, 101):
        monkeypatch.setattr("raymat.storage.backends._WINDOW", window)
        LocalBackend().write(str(tmp_path / f"file-{window}"), chunks)
        assert (tmp_path / f"file-{window}").read_bytes() == whole
    LocalBackend().write(str(tmp_path / "empty"), [])
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_file_whose_beginning_is_taken_for_a_dead_writers_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, sync, removed = Store.open(str(tmp_path), "run"), backends._sync_and_drop, []

    def remove_once(file: Any) -> None:
        sync(file)
        if not removed:
            removed.extend(info.path for info in unfinished_files(store))
            store.delete(removed)

    monkeypatch.setattr(backends, "_sync_and_drop", remove_once)
    store.write("events/x", [b"some ", b"rest"])
    assert len(removed) == 1
    assert store.read("events/x") == b"some rest"
    assert list(unfinished_files(store)) == []


def test_only_what_is_being_written_counts_as_unfinished_and_object_stores_are_not_asked(
    tmp_path: Path, s3_server: S3Server, request_counter: Any
) -> None:
    store = Store.open(str(tmp_path), "run")
    store.write("a/x", b"x")
    (tmp_path / "run/a/.tmp-1-abcdef01").write_bytes(b"half")
    assert [(info.path, info.size) for info in unfinished_files(store)] == [
        ("a/.tmp-1-abcdef01", 4)
    ]
    bucket = s3_server.store("unfinished")
    calls = request_counter(bucket)
    assert list(unfinished_files(bucket)) == calls == []


def test_an_output_removes_what_killed_commands_left_beside_it(tmp_path: Path) -> None:
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True)
    gone = tmp_path / f".tmp-{dead.stdout.strip()}-abcdef01"
    alive = tmp_path / f".tmp-{os.getppid()}-abcdef01"
    others = tmp_path / ".tmp-notes"
    for path in (gone, alive, others):
        path.write_bytes(b"half")
    write_output("-o", str(tmp_path / "x.csv"), b"whole")
    write_file(str(tmp_path / "y.pth"), [b"whole"])
    assert sorted(tmp_path.iterdir()) == sorted(
        [alive, others, tmp_path / "x.csv", tmp_path / "y.pth"]
    )
