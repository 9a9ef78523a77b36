"""Storage of a run: reads, writes, lists and deletes its files at an fsspec URL.

A file is visible only when it is whole. Transient faults are retried for a bounded time; all others are a one-line
`StorageError`. `MissingFileError` is the only kind that callers tell apart.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from raymat.errors import RunGoneError, StorageError
from raymat.storage.anchor import Anchor
from raymat.storage.backends import TEMPORARY, Backend, FsspecBackend, LocalBackend
from raymat.storage.digest import Buffer
from raymat.storage.faults import MissingFileError, backend_errors, classify, reason
from raymat.storage.retry import RetryPolicy
from raymat.storage.urls import redact, refuse_secrets

T = TypeVar("T")

_S3_OPTIONS: dict[str, Any] = {
    # One request for a read instead of two: with more, s3fs first asks for the size.
    "max_concurrency": 1,
    # The digests here are stronger than botocore's checksums, which some servers send wrongly for a
    # range, or refuse.
    "config_kwargs": {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        # Seconds of silence, not of a whole transfer: a large part over a slow link goes on as long as bytes
        # move. With the retries, a storage that hangs blocks a request for 50 s.
        "connect_timeout": 5,
        "read_timeout": 15,
        # Retries of a single request or part; then the store retries, and says what happened.
        "retries": {"max_attempts": 2},
    },
}
_OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3_OPTIONS, "s3a": _S3_OPTIONS}

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}


@dataclass(frozen=True)
class FileInfo:
    """File in a listing: `path` relative to the run's folder, `size` in bytes, `modified` in Unix seconds."""

    path: str
    size: int
    modified: float = 0.0


class Store:
    """Folder of one run below a storage URL, made by `Store.open`.

    It can be pickled, and shared by threads.
    """

    def __init__(
        self, backend: Backend, root: str, url: str, reopen: tuple[Any, ...], retry: RetryPolicy
    ) -> None:
        self.backend = backend
        self.url = url
        """The run's URL, without secrets: for messages."""
        self.retry = retry
        self._root = root
        self._reopen = reopen
        self._anchor = Anchor()
        """Copies of this store share it."""
        self._random = random.Random()
        self._sleep: Callable[[float], None] = time.sleep

    @classmethod
    def open(
        cls,
        storage_url: str,
        name: str,
        *,
        retry: RetryPolicy = RetryPolicy(),
        options: Mapping[str, Any] | None = None,
    ) -> Store:
        """Return the store of run `name` below `storage_url`; nothing is read or written yet.

        `options` go to fsspec's file system; credentials belong to the environment or the machine's
        role, as the provider's package reads them. Raises StorageError if the URL's protocol is
        unknown or its package missing.
        """
        _check_name(name)
        refuse_secrets(storage_url)
        url = f"{redact(storage_url).rstrip('/')}/{name}"
        filesystem, base = _filesystem(storage_url, dict(options or {}))
        local = isinstance(filesystem, LocalFileSystem)
        backend: Backend = LocalBackend() if local else FsspecBackend(filesystem)
        root = f"{base.rstrip('/')}/{name}"
        return cls(backend, root, url, (storage_url, name, retry, dict(options or {})), retry)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (*self._reopen, self._anchor)

    def anchor(self, path: str, word: str) -> None:
        """From now on write and delete only while the file `path` is there and contains `word`.

        So a run's folder that was removed or unmounted is not made anew, and another run in its place is left alone. Holds
        for copies of this store too. Costs a read of that file with each write.
        """
        self._anchor.path, self._anchor.word = path, word

    def require_anchor(self) -> None:
        """Raise RunGoneError unless the file that `anchor` named is there; StorageError if the storage fails."""
        if self._anchor.path and isinstance(self.backend, LocalBackend):
            self.backend.kept = self._root
        if not self._anchor.is_there(self.read):
            raise RunGoneError(
                f"{self.url} is gone: its {self._anchor.path} is missing or another run's; "
                "bring it back (is it mounted?), and the same command goes on"
            )

    def read(self, path: str) -> bytes:
        """Return all bytes of a file. Raises MissingFileError."""
        return self._try("read", path, lambda: self.backend.read(self._at(path)))

    def try_read(self, path: str) -> bytes | None:
        """Return all bytes of a file, or None if it is missing."""
        try:
            return self.read(path)
        except MissingFileError:
            return None

    def read_into(self, path: str, offset: int, view: memoryview) -> None:
        """Fill `view` with the file's bytes from `offset` on, in one request.

        Raises MissingFileError also if the file ends before.
        """
        got = self._try("read", path, lambda: self.backend.read_into(self._at(path), offset, view))
        if got < len(view):
            raise MissingFileError(
                f"cannot read {self._url(path)}: it ends after {offset + got} bytes, expected {offset + len(view)}"
            )

    def write(self, path: str, data: Buffer | Sequence[Buffer]) -> None:
        """Write or replace a file, given in one piece or several: visible only when whole, durable on return."""
        chunks = [data] if isinstance(data, bytes | bytearray | memoryview) else list(data)
        self._change("write", path, lambda: self.backend.write(self._at(path), chunks))

    def list(self, folder: str = "", *, temporary: bool = False) -> list[FileInfo]:
        """List every file below `folder` (default: the whole run), sorted by path.

        One recursive listing, never a cached one. `temporary`: also files that were being written
        when their writer died.
        """
        prefix = self._at(folder)
        found = self._try("list", folder, lambda: list(self.backend.list(prefix)))
        # Providers differ in leading slashes; what counts comes after the run's folder.
        skip = len(self._root.strip("/")) + 1
        infos = [FileInfo(path.strip("/")[skip:], size, when) for path, size, when in found]
        if not temporary:
            infos = [i for i in infos if not PurePosixPath(i.path).name.startswith(TEMPORARY)]
        return sorted(infos, key=lambda info: info.path)

    def delete(self, paths: Sequence[str]) -> None:
        """Remove files in few requests, ignoring missing ones."""
        absolute = [self._at(path) for path in paths]
        for start in range(0, len(absolute), 1000):
            part = absolute[start : start + 1000]
            self._change("delete from", "", lambda part=part: self.backend.delete(part))  # type: ignore[misc]

    def _at(self, path: str) -> str:
        """Return the backend's path of `path`, which must stay inside the run's folder."""
        parts = path.split("/") if path else []
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            raise ValueError(f"not a path inside a run: {path!r}")
        return "/".join([self._root, *parts])

    def _url(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url

    def _change(self, action: str, path: str, call: Callable[[], None]) -> None:
        self.require_anchor()
        try:
            self._try(action, path, call)
        except StorageError:
            self.require_anchor()  # it may have gone in between
            raise

    def _try(self, action: str, path: str, call: Callable[[], T]) -> T:
        """Return `call()`, retried while its fault is transient and the policy allows."""
        try:
            return self.retry.run(
                call,
                lambda error: classify(error, action).transient,
                sleep=self._sleep,
                uniform=self._random.uniform,
            )
        except backend_errors() as error:
            raise classify(error, action).error(action, self._url(path)) from error


def _reopen(
    storage_url: str, name: str, retry: RetryPolicy, options: dict[str, Any], anchor: Anchor
) -> Store:
    store = Store.open(storage_url, name, retry=retry, options=options)
    store._anchor = anchor
    return store


def _check_name(name: str) -> None:
    if name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise StorageError(f"expected a run's name without slashes, got {name!r}")


def _filesystem(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return fsspec's file system for `url`, unshared and without cached listings, and the path in it."""
    protocol = urlsplit(url).scheme if "://" in url else "file"
    chosen = {"use_listings_cache": False, "skip_instance_cache": True}
    chosen |= _OPTIONS.get(protocol, {}) | options
    try:
        if protocol in _OPTIONS:
            chosen["config_kwargs"] = _s3_config() | options.get("config_kwargs", {})
        filesystem, base = fsspec.core.url_to_fs(url, **chosen)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        fix = f"pip install 'raymat[{extra}]'" if extra else reason(error)
        raise StorageError(
            f"cannot open {redact(url)}: a package for {protocol}:// is missing; {fix}"
        ) from error
    except ValueError as error:
        raise StorageError(f"cannot open {redact(url)}: {reason(error)}") from error
    except backend_errors() as error:
        raise classify(error, "open").error("open", redact(url)) from error
    if protocol in _OPTIONS:
        # s3fs repeats each request 5 times on top of botocore's retries: a storage that hangs would block us
        # for minutes. botocore's retries stay, the store's come on top.
        filesystem.retries = 1
    return filesystem, str(base)


def _s3_config() -> dict[str, Any]:
    """Return botocore's settings; its packages take a second to load, so they are loaded here only."""
    from raymat.storage.s3 import WatchedSession

    return _S3_OPTIONS["config_kwargs"] | {"http_session_cls": WatchedSession}
