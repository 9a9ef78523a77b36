"""Storage of a run: reads, writes, lists and deletes its files at an fsspec URL.

A file is visible only when it is whole. Transient faults are retried for a bounded time; all others are a one-line
`StorageError`. `MissingFileError` is the only kind that callers tell apart.
"""

from __future__ import annotations

import logging
import posixpath
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

from raymat.errors import RunGoneError, StorageError
from raymat.storage.access import Access
from raymat.storage.anchor import Anchor
from raymat.storage.backends import TEMPORARY, Backend, LocalBackend
from raymat.storage.digest import Buffer
from raymat.storage.faults import DeniedError, MissingFileError, backend_errors, classify
from raymat.storage.fsspec_backend import FsspecBackend
from raymat.storage.retry import RetryPolicy
from raymat.storage.urls import redact, root_problem

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        self, access: Access, backend: Backend, root: str, url: str, retry: RetryPolicy
    ) -> None:
        self.backend = backend
        self.location = url
        """The run's URL as it was given: to open, not to show."""
        self.url = redact(url)
        """The run's URL, without secrets: for messages."""
        self.retry = retry
        self._access = access
        self.root = root
        """Path of the run's folder in the storage's own notation."""
        self._anchor = Anchor()
        """Copies of this store share it."""
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
        role, as the provider's package reads them. Raises StorageError if the URL carries secrets, its protocol is
        unknown or its package missing.
        """
        _check_name(name)
        return _opened(storage_url, name, retry, dict(options or {}))

    def __reduce__(self) -> tuple[Any, ...]:
        access, name = self._access, posixpath.basename(self.root)
        known = (frozenset(access.allowed), access.may_delete, self._anchor)
        return _opened, (access.url, name, self.retry, access.options, *known)

    @property
    def may_delete(self) -> bool:
        """Whether `delete` deletes; False once it is known that this account has no right to."""
        return self._access.may_delete

    def anchor(self, word: str, *paths: str) -> None:
        """From now on write and delete only while one of the files `paths` is there and contains `word`.

        So a run's folder that was removed or unmounted is not made anew, and another run in its place is left alone. Holds
        for copies of this store too. Costs a read of the first file with each write.
        """
        self._anchor.paths, self._anchor.word = paths, word

    def require_anchor(self) -> None:
        """Raise RunGoneError unless the file that `anchor` named is there; StorageError if the storage fails."""
        if self._anchor.paths and isinstance(self.backend, LocalBackend):
            self.backend.kept = self.root
        if not self._anchor.is_there(self.read):
            raise RunGoneError(
                f"{self.url} is gone: its {self._anchor.paths[0]} is missing or another run's; "
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
        skip = len(self.root.strip("/")) + 1
        infos = [FileInfo(path.strip("/")[skip:], size, when) for path, size, when in found]
        if not temporary:
            infos = [i for i in infos if not PurePosixPath(i.path).name.startswith(TEMPORARY)]
        return sorted(infos, key=lambda info: info.path)

    def delete(self, paths: Sequence[str]) -> None:
        """Remove files in few requests, ignoring missing ones; keep them where this account may not delete (`may_delete`)."""
        absolute = [self._at(path) for path in paths]
        for start in range(0, len(absolute), 1000):
            part = absolute[start : start + 1000]
            if self.may_delete:
                self._delete(lambda part=part: self.backend.delete(part))  # type: ignore[misc]

    def _delete(self, call: Callable[[], None]) -> None:
        try:
            self._change("delete from", "", call)
        except DeniedError as error:
            self.list("lease")  # raises where it is the keys that are refused
            self._access.may_delete = False
            log.info("everything is kept: %s", error.line)

    def _at(self, path: str) -> str:
        """Return the backend's path of `path`, which must stay inside the run's folder."""
        if path and not can_be_stored(path):
            raise ValueError(f"not a path inside a run: {path!r}")
        return f"{self.root}/{path}" if path else self.root

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
            return self._access.run(action, call, self.retry, sleep=self._sleep)
        except backend_errors() as error:
            raise classify(error, action).error(action, self._url(path)) from error


def open_each(
    storage_url: str,
    *,
    retry: RetryPolicy = RetryPolicy(),
    options: Mapping[str, Any] | None = None,
) -> list[Store]:
    """Return a store for each folder right below a storage URL, by name; one listing. They share one access to the storage.

    Raises:
        MissingFileError: there is no such folder. StorageError: it cannot be listed; as for `Store.open`.
    """
    first = _opened(storage_url, "x", retry, dict(options or {}))
    access, backend = first._access, first.backend
    try:
        names: Sequence[str] = access.run("list", lambda: backend.folders(access.path), retry)
    except backend_errors() as error:
        fault = classify(error, "list")
        if isinstance(error, FileNotFoundError) and fault.kind == "other":
            fault = replace(fault, kind="missing")
        raise fault.error("list", redact(storage_url)) from error
    places = [
        [f"{place.rstrip('/')}/{n}" for place in (access.path, storage_url)] for n in sorted(names)
    ]
    return [Store(access, backend, root, url, retry) for root, url in places]


def can_be_stored(path: str) -> bool:
    """Whether a store has a file of this name: its parts are names, on any system."""
    return not any(p in ("", ".", "..") or "\\" in p or "\0" in p for p in path.split("/"))


def require_writable(store: Store) -> None:
    """Write a file to the run's folder and remove it. Raises StorageError where that fails."""
    path = f"events/.probe-{uuid.uuid4().hex}"
    try:
        store.write(path, b"")
    except StorageError as error:
        # The name of a file that nobody asked for tells nothing.
        raise type(error)(error.line.replace(f"/{path}", "")) from error
    store.delete([path])


def unfinished_files(store: Store) -> list[FileInfo]:
    """List what writers of the run are writing, or were when they died. Object stores keep no such files.

    To delete one of a living writer costs it a second write.
    """
    if not isinstance(store.backend, LocalBackend):
        return []
    found = store.list(temporary=True)
    return [info for info in found if PurePosixPath(info.path).name.startswith(TEMPORARY)]


def _opened(
    storage_url: str,
    name: str,
    retry: RetryPolicy,
    options: dict[str, Any],
    allowed: Iterable[str] = (),
    may_delete: bool = True,
    anchor: Anchor | None = None,
) -> Store:
    if (problem := root_problem(storage_url)) is not None:
        raise StorageError(problem)
    access = Access(storage_url, options, allowed)
    access.may_delete = may_delete
    backend: Backend = LocalBackend() if access.is_local else FsspecBackend(access)
    root, url = (f"{place.rstrip('/')}/{name}" for place in (access.path, storage_url))
    store = Store(access, backend, root, url, retry)
    store._anchor = anchor or Anchor()
    return store


def _check_name(name: str) -> None:
    if name in ("", ".", "..") or re.search(r"[/\\\0]", name):
        raise StorageError(f"expected a run's name without slashes, got {name!r}")
