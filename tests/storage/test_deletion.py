"""Storage that deletes in its own way, or not at all."""

from __future__ import annotations

import base64
import hashlib
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raymat.errors import StorageError
from raymat.storage.faults import DeniedError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store
from raymat.storage.urls import delete_right
from tests.support.fault_proxy import FaultProxy
from tests.support.s3 import S3Server


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def behind(s3_server: S3Server, proxy: FaultProxy) -> Store:
    bucket = f"deletion-{time.monotonic_ns()}"
    s3_server.store(bucket)
    options = s3_server.options | {"endpoint_url": proxy.endpoint}
    return Store.open(f"s3://{bucket}/runs", "run", options=options)


def is_bulk(request: Any) -> bool:
    return request.method == "POST" and "delete" in request.path


def without_md5(request: Any) -> tuple[int, str] | None:
    """As MinIO before 2025 and Ceph answer: the one checksum that they know has to be there."""
    named = {name.lower() for name, _ in request.headers}
    if is_bulk(request) and "content-md5" not in named:
        return 400, "MissingContentMD5"
    return None


def bulk_refused(status: int, code: str) -> Callable[[Any], tuple[int, str] | None]:
    return lambda request: (status, code) if is_bulk(request) else None


def deletions_refused(request: Any) -> tuple[int, str] | None:
    return (403, "AccessDenied") if is_bulk(request) or request.method == "DELETE" else None


def fill(store: Store) -> list[str]:
    paths = [f"a/{n}" for n in range(5)]
    for path in paths:
        store.write(path, b"x")
    return paths


def test_a_server_that_wants_an_md5_gets_one(behind: Store, proxy: FaultProxy) -> None:
    proxy.refuses = without_md5
    paths = fill(behind)
    behind.delete(paths)
    assert behind.list() == []
    assert proxy.counts["not accepted"] == 0


def test_the_md5_is_that_of_the_request_s_body(behind: Store, proxy: FaultProxy) -> None:
    sent: list[tuple[str, bytes]] = []
    session = behind.backend.filesystem.session  # type: ignore[attr-defined]

    def note(params: dict[str, Any], **_: Any) -> None:
        sent.append((params["headers"]["Content-MD5"], params["body"]))

    session.register("before-call.s3.DeleteObjects", note)
    behind.delete(fill(behind))
    ((header, body),) = sent
    assert base64.b64decode(header) == hashlib.md5(body).digest()


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "MissingContentMD5"), (400, "InvalidRequest"), (501, "NotImplemented"), (405, "MethodNotAllowed")],
)  # fmt: skip
def test_a_server_that_does_not_delete_in_bulk_is_asked_once_and_then_object_by_object(
    behind: Store, proxy: FaultProxy, status: int, code: str
) -> None:
    proxy.refuses = bulk_refused(status, code)
    behind.delete(fill(behind))
    assert behind.list() == []
    behind.delete(fill(behind))
    assert behind.list() == []
    assert proxy.counts["not accepted"] == 1
    assert behind.may_delete


def test_an_account_that_may_not_delete_keeps_everything_and_is_asked_no_more(
    behind: Store, proxy: FaultProxy
) -> None:
    paths = fill(behind)
    proxy.refuses = deletions_refused
    began = time.monotonic()
    behind.delete(paths)
    assert time.monotonic() - began < 5
    assert not behind.may_delete
    assert delete_right(behind.url) == "s3:DeleteObject"
    asked = proxy.counts["not accepted"]
    behind.delete(paths)
    pickle.loads(pickle.dumps(behind)).delete(paths)
    assert proxy.counts["not accepted"] == asked <= 2
    assert [file.path for file in behind.list()] == paths


def test_an_object_that_is_refused_within_an_accepted_request_counts_as_refused(
    behind: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = fill(behind)
    filesystem = behind.backend.filesystem  # type: ignore[attr-defined]
    answer = {"Errors": [{"Key": "k", "Code": "AccessDenied", "Message": "Access Denied"}]}
    monkeypatch.setattr(filesystem, "call_s3", lambda *args, **kwargs: answer)
    behind.delete(paths)
    assert not behind.may_delete


def test_refused_keys_are_not_taken_for_a_missing_right(behind: Store, proxy: FaultProxy) -> None:
    paths = fill(behind)
    behind.retry = RetryPolicy(total=0.2)
    proxy.fail_all(403, "AccessDenied")
    with pytest.raises(DeniedError):
        behind.delete(paths)
    proxy.heal()
    assert behind.may_delete
    behind.delete(paths)
    assert behind.list() == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "InvalidRequest"), (405, "MethodNotAllowed"), (411, "MissingContentLength"), (501, "NotImplemented")],
)  # fmt: skip
def test_a_request_that_cannot_succeed_is_sent_once(
    behind: Store, proxy: FaultProxy, status: int, code: str
) -> None:
    proxy.fail_all(status, code)
    with pytest.raises(StorageError):
        behind.write("x", b"1")
    assert proxy.counts["outage"] == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(408, "RequestTimeout"), (409, "OperationAborted"), (429, "TooManyRequests"), (400, "BadDigest"), (400, "RequestTimeout")],
)  # fmt: skip
def test_a_request_that_may_succeed_is_sent_again(
    behind: Store, proxy: FaultProxy, status: int, code: str
) -> None:
    behind.retry = RetryPolicy(attempts=3, first=0.05, longest=0.1)
    proxy.fail_all(status, code)
    with pytest.raises(StorageError):
        behind.write("x", b"1")
    assert proxy.counts["outage"] > 2
