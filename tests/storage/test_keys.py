"""Keys that are renewed while a run goes on: the new ones are read, and what was allowed before is not given up."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from raymat.data.dataset.image_folder import Folder, UnreadableImage
from raymat.errors import StorageError
from raymat.storage.faults import DeniedError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store
from tests.support.fault_proxy import FaultProxy
from tests.support.s3 import KEY, RENEWED, SECRET, S3Server

FIRST, SECOND = list(RENEWED)[:2]
QUICK = RetryPolicy(total=20.0, first=0.05, longest=0.2)


class Keys:
    """The credentials file of this process, and the proxy that refuses all keys but those in it."""

    def __init__(self, proxy: FaultProxy, file: Path) -> None:
        self.proxy, self.file = proxy, file

    def write(self, key: str, secret: str) -> None:
        self.file.write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        )


@pytest.fixture
def keys(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keys]:
    monkeypatch.setattr("raymat.storage.access.RENEW_SECONDS", 0.3)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with FaultProxy(s3_server) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        found = Keys(proxy, tmp_path / "credentials")
        found.write(KEY, SECRET)
        yield found


@pytest.fixture
def store(keys: Keys, s3_server: S3Server) -> Store:
    bucket = f"keys-{time.monotonic_ns()}"
    s3_server.store(bucket)
    return Store.open(f"s3://{bucket}/runs", "run", retry=QUICK)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "AccessDenied"),
        (401, "Unauthorized"),
        (400, "ExpiredToken"),
        (400, "InvalidToken"),
        (400, "TokenRefreshRequired"),
        (403, "RequestExpired"),
    ],
)
def test_new_keys_are_read_when_the_old_ones_are_refused(
    store: Store, keys: Keys, status: int, code: str
) -> None:
    store.write("a", b"old keys")
    keys.write(FIRST, RENEWED[FIRST])
    keys.proxy.accept(FIRST, status=status, code=code)
    store.write("b", b"new keys")
    assert store.read("a") == b"old keys"
    store.delete(["a"])
    assert [file.path for file in store.list()] == ["b"]
    assert keys.proxy.counts["not accepted"] >= 1


def test_what_was_allowed_is_tried_until_the_new_keys_are_there(store: Store, keys: Keys) -> None:
    store.write("a", b"old keys")
    keys.proxy.accept(SECOND)
    later = threading.Timer(1.0, keys.write, [SECOND, RENEWED[SECOND]])
    later.start()
    began = time.monotonic()
    store.write("b", b"new keys")
    later.join()
    assert 0.9 < time.monotonic() - began < 20
    assert store.read("b") == b"new keys"


def test_a_credentials_file_that_is_half_written_is_waited_for(store: Store, keys: Keys) -> None:
    store.write("a", b"old keys")
    keys.proxy.accept(SECOND)
    keys.file.write_text("[default]\naws_access_key_id = ")
    later = threading.Timer(0.5, keys.write, [SECOND, RENEWED[SECOND]])
    later.start()
    store.write("b", b"new keys")
    later.join()


def test_wrong_keys_are_refused_at_once_where_nothing_was_ever_allowed(keys: Keys) -> None:
    keys.write("REVOKEDKEY", SECRET)
    keys.proxy.accept(KEY)
    with pytest.raises(DeniedError, match=r"permission denied \(InvalidAccessKeyId\)"):
        Store.open("s3://prepared-keys/runs", "run").write("x", b"1")
    assert keys.proxy.counts["not accepted"] <= 2  # the keys were looked up once more


def test_a_process_that_is_handed_a_store_knows_what_was_allowed(store: Store, keys: Keys) -> None:
    store.write("a", b"1")
    handed: Store = pickle.loads(pickle.dumps(store))
    keys.proxy.accept(SECOND)
    later = threading.Timer(0.5, keys.write, [SECOND, RENEWED[SECOND]])
    later.start()
    handed.write("a", b"2")
    later.join()
    assert handed.read("a") == b"2"


def test_what_stays_refused_fails_when_patience_ends(store: Store, keys: Keys) -> None:
    store.retry = RetryPolicy(total=0.5, first=0.05, longest=0.1)
    store.write("a", b"1")
    keys.proxy.accept(SECOND)
    began = time.monotonic()
    with pytest.raises(StorageError, match="permission denied"):
        store.write("a", b"2")
    assert 0.3 < time.monotonic() - began < 20


def test_what_is_on_its_way_with_the_old_keys_arrives(store: Store, keys: Keys) -> None:
    store.write("a", b"1")
    keys.proxy.upload_rate = 2**20
    with ThreadPoolExecutor(9) as pool:
        slow = pool.submit(store.write, "slow", b"x" * 2 * 2**20)
        time.sleep(0.5)
        keys.write(FIRST, RENEWED[FIRST])
        keys.proxy.accept(FIRST)
        many = [pool.submit(store.write, f"many/{n}", b"new keys") for n in range(8)]
        for done in (slow, *many):
            done.result()
    assert len(store.read("slow")) == 2 * 2**20
    assert len(store.list("many")) == 8


def test_renewing_asks_for_no_keys_more_often_than_every_few_seconds(
    store: Store, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymat.storage.access.RENEW_SECONDS", 0.5)
    store.write("a", b"1")
    keys.proxy.accept(SECOND)
    seen = set()

    def note(seconds: float) -> None:
        seen.add(id(store.backend.filesystem))  # type: ignore[attr-defined]
        time.sleep(seconds)

    store._sleep = note
    store.retry = RetryPolicy(total=1.2, first=0.02, longest=0.05)
    began = time.monotonic()
    with pytest.raises(StorageError):
        store.write("a", b"2")
    assert 1 <= len(seen) <= 1 + (time.monotonic() - began) / 0.5


# Pictures.


def denied_at(part: str) -> Callable[[Any], tuple[int, str] | None]:
    return lambda request: (403, "AccessDenied") if part in request.path else None


@pytest.fixture
def folder(store: Store) -> Folder:
    store.write("data/a.jpg", b"a")
    store.write("data/b.jpg", b"b")
    return Folder(f"{store.url}/data", QUICK)


def test_keys_that_are_refused_make_no_picture_unreadable(folder: Folder, keys: Keys) -> None:
    assert folder.read("a.jpg") == b"a"
    keys.proxy.accept(SECOND, code="AccessDenied")
    later = threading.Timer(1.0, keys.write, [SECOND, RENEWED[SECOND]])
    later.start()
    assert folder.read("b.jpg") == b"b"
    later.join()


def test_a_reader_that_starts_while_keys_are_refused_waits_for_new_ones(
    folder: Folder, keys: Keys
) -> None:
    keys.proxy.accept(SECOND, code="AccessDenied")
    later = threading.Timer(1.0, keys.write, [SECOND, RENEWED[SECOND]])
    later.start()
    assert folder.read("b.jpg") == b"b"
    later.join()


@pytest.mark.parametrize("first", [True, False])
def test_a_picture_that_alone_is_forbidden_is_unreadable_at_once(
    folder: Folder, keys: Keys, first: bool
) -> None:
    if first:
        assert folder.read("a.jpg") == b"a"
    keys.proxy.refuses = denied_at("b.jpg")
    with pytest.raises(UnreadableImage, match=r"data/b\.jpg"):
        folder.read("b.jpg")
    assert keys.proxy.counts["not accepted"] <= 4  # with patience some twenty
