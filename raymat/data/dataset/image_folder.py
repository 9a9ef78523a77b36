"""Folder of images at any fsspec URL: listed in few requests, read with retries.

A read has three outcomes:

- the bytes;
- `UnreadableImage`: this file will never be readable (not found, forbidden while others are not, another size than
  listed). The batch replaces it and says so;
- `DataError`: the storage did not answer in spite of retries, or a disk is not mounted any more. Replacing examples would
  change what the run trains on, so the attempt ends and the run resumes later.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from raymat.errors import DataError, StorageError
from raymat.storage.access import Access
from raymat.storage.faults import backend_errors, classify, reason
from raymat.storage.filesystems import find_files
from raymat.storage.retry import RetryPolicy
from raymat.storage.urls import redact, takes_keys

UNKNOWN_SIZE = -1

_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

_WRITTEN = {code: repr(chr(code))[1:-1] for code in (*range(32), 127)}
"""How messages write characters that would break their line, or move a terminal's cursor."""
_CODED = {ord("?"): "%3F", ord("#"): "%23"}
"""How messages write what would be redacted behind a URL."""


class UnreadableImage(DataError):
    """Error for one image that cannot be read: its `path` (with the URL) and the `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class UnreachableError(DataError):
    """Error of a storage that cannot be opened or listed, or did not answer: nothing is known of what is there."""


class SilentStorageError(UnreachableError):
    """Error of a storage that does not answer at all."""


READ_RETRY = RetryPolicy(total=120.0, first=0.5, longest=15.0)
"""Default for reads: long enough for an outage or for keys to be renewed, too short to count as stuck."""


class Folder:
    """Folder at an fsspec URL.

    `answered`: it was read before, so that silence is waited out as `retry` says; otherwise for a few seconds.

    Raises:
        DataError: the URL names a protocol that is unknown or whose driver is not installed.
    """

    def __init__(
        self, url: str, retry: RetryPolicy = READ_RETRY, *, answered: bool = False
    ) -> None:
        self._retry = retry
        try:
            self._access = Access(url, allowed=("list", "read") if answered else ())
        except StorageError as error:
            raise UnreachableError(error.line) from error
        self._root = self._access.path.rstrip("/")
        self._last_read: str | None = None
        # Local: absolute, since it is read again by processes that run elsewhere.
        self.url = self._root if self._access.is_local else url.rstrip("/")

    @property
    def remote(self) -> bool:
        """Whether a read waits for a network rather than for a disk."""
        return not isinstance(self._fs, (LocalFileSystem, MemoryFileSystem))

    @property
    def _fs(self) -> fsspec.AbstractFileSystem:
        return self._access.filesystem

    def shown(self, path: str = "") -> str:
        """Return the URL of a path in this folder as messages may show it."""
        path = path if self._access.is_local else path.translate(_CODED)
        return redact(f"{self.url}/{path}" if path else self.url).translate(_WRITTEN)

    def entries(self, path: str = "") -> dict[str, bool] | None:
        """Return what is directly in `path`: each name, and whether it is a folder; None if there is no such folder.

        Raises:
            DataError: the storage cannot be listed.
        """
        root = f"{self._root}/{path}".rstrip("/")
        try:
            return self._access.run("list", lambda: _entries(self._fs, root), RetryPolicy())
        except backend_errors() as error:
            raise _unreachable(f"cannot list {self.shown(path)}", error) from error

    def find(
        self, path: str, is_junk: Callable[[str], bool] = lambda name: name.startswith(".")
    ) -> dict[str, int] | None:
        """List every file below `path`: its path from there, and its size in bytes (-1: unknown).

        One recursive listing; links are followed. `is_junk`: names of folders that need not be looked into: on a disk each
        is listed as such, its path with a / behind it.

        Returns:
            None if there is no such folder.

        Raises:
            DataError: the storage cannot be listed.
        """
        root = f"{self._root}/{path}"
        try:
            if isinstance(self._fs, LocalFileSystem):
                return dict(_walk(root, "", (), is_junk)) if os.path.isdir(root) else None
            return self._access.run("list", lambda: self._find_remote(root), RetryPolicy())
        except backend_errors() as error:
            raise _unreachable(f"cannot list {self.shown(path)}", error) from error

    def _find_remote(self, root: str) -> dict[str, int] | None:
        self._fs.invalidate_cache()
        try:
            found = find_files(self._fs, root)
        except FileNotFoundError:
            return None
        finally:
            self._fs.invalidate_cache()  # a listing of 240,000 files is not kept twice
        prefix = self._fs._strip_protocol(root).rstrip("/") + "/"
        sizes = {
            name.removeprefix(prefix): _size_of(info)
            for name, info in found.items()
            if name.startswith(prefix) and info.get("type") != "directory"
        }
        return sizes or ({} if self._fs.exists(root) else None)

    def read(self, path: str, size: int = UNKNOWN_SIZE) -> bytes:
        """Return all bytes of a file, which should have `size` bytes; transient faults are retried.

        Raises:
            UnreadableImage: the file is gone, forbidden or of another size.
            DataError: the storage still failed at the last attempt.
        """
        data = self._read(path)
        if size not in (UNKNOWN_SIZE, len(data)):
            raise UnreadableImage(
                self.shown(path), f"changed since the run began: was {size} bytes, is {len(data)}"
            )
        return data

    def _read(self, path: str) -> bytes:
        tries, permanent, used = 0, False, self._fs

        def fetch() -> bytes:
            nonlocal tries, used
            tries, used = tries + 1, self._fs
            return bytes(used.cat_file(f"{self._root}/{path}"))

        def may_pass(error: BaseException) -> bool:
            nonlocal permanent
            permanent = self._is_permanent(error, used, path)
            return not permanent

        try:
            data = self._access.run("read", fetch, self._retry, may_pass=may_pass)
        except backend_errors() as error:
            if permanent:
                raise UnreadableImage(self.shown(path), _refusal(error)) from error
            after = f" after {tries} attempts" if tries > 1 else ""
            what = f"cannot read {self.shown(path)}{after}"
            if _is_unmounted(self._fs, self._root, path):
                raise _unmounted(what, self.shown(_top(path))) from error
            raise _unreachable(what, error) from error
        self._last_read = path
        return data

    def _is_permanent(
        self, error: BaseException, used: fsspec.AbstractFileSystem, path: str
    ) -> bool:
        """Return whether a retry is pointless after this error of the file system that was `used`."""
        if self._refuses_keys(error, used) or _is_unmounted(used, self._root, path):
            return False
        return isinstance(error, _PERMANENT) or _is_client_fault(error) or _is_bad_disk(error, used)

    def _refuses_keys(self, error: BaseException, used: fsspec.AbstractFileSystem) -> bool:
        """Return whether a refusal is of this account's keys, rather than of this one image."""
        fault = classify(error)
        if fault.kind not in ("denied", "credentials") or not self.remote:
            return False
        return fault.refuses_keys or (takes_keys(self.url) and not self._may_read_others(used))

    def _may_read_others(self, filesystem: fsspec.AbstractFileSystem) -> bool:
        try:
            if self._last_read is None:
                filesystem.ls(self._root, refresh=True)
            else:
                filesystem.cat_file(f"{self._root}/{self._last_read}", start=0, end=1)
        except backend_errors():
            return False
        return True


def _refusal(error: BaseException) -> str:
    return "not found" if isinstance(error, FileNotFoundError) else reason(error)


def _is_bad_disk(error: BaseException, used: fsspec.AbstractFileSystem) -> bool:
    """Return whether it is a local disk's input/output error, which stays; a bucket's EIO is a passing fault."""
    is_local = isinstance(used, (LocalFileSystem, MemoryFileSystem))
    return is_local and isinstance(error, OSError) and error.errno == errno.EIO


def _is_unmounted(filesystem: fsspec.AbstractFileSystem, root: str, path: str) -> bool:
    """Return whether a local file cannot be read as no other can: a disk or a share is not mounted any more."""
    if not isinstance(filesystem, LocalFileSystem) or not _top(path):
        return False
    try:
        with os.scandir(f"{root}/{_top(path)}") as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _unmounted(what: str, top: str) -> DataError:
    return DataError(
        f"{what}: {top} is gone, empty or closed to this account: is its disk or share still mounted?"
    )


def _top(path: str) -> str:
    """Return the first folder of a path, "" if it has none."""
    return path.rpartition("/")[0].partition("/")[0]


def _unreachable(what: str, error: BaseException) -> UnreachableError:
    fault = classify(error, "list")  # what does not answer may not be called missing
    kind = SilentStorageError if fault.kind == "unreachable" else UnreachableError
    return kind(f"{what}: {fault.advice}")


def _entries(filesystem: fsspec.AbstractFileSystem, root: str) -> dict[str, bool] | None:
    """Return the names in a folder, and whether each is one; None if there is no such folder."""
    try:
        found = filesystem.ls(root, detail=True, refresh=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    here = filesystem._strip_protocol(root).rstrip("/")
    names = {info["name"].rstrip("/"): info["type"] == "directory" for info in found}
    if not names.pop(here, True):
        return None  # a file
    return {name.rpartition("/")[2]: is_folder for name, is_folder in sorted(names.items())}


def _walk(
    root: str,
    prefix: str,
    above: tuple[tuple[int, int], ...],
    is_junk: Callable[[str], bool],
) -> Iterator[tuple[str, int]]:
    """Yield the files below a local folder, following links (fsspec does not), but not to a folder above."""
    status = os.stat(root)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(root) as entries:
        for entry in entries:
            is_folder = _leads_to_folder(entry)
            if is_folder and is_junk(entry.name):
                yield f"{prefix}{entry.name}/", 0
            elif is_folder:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here), is_junk)
            else:
                yield prefix + entry.name, _local_size(entry)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # a link to itself


def _local_size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # a dangling link: listed as empty, and refused as such
        return 0
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return 0  # a link to itself


def _size_of(info: Mapping[str, Any]) -> int:
    size = info.get("size")
    return UNKNOWN_SIZE if size is None else int(size)


def _is_client_fault(error: BaseException) -> bool:
    """Return whether it is an HTTP 4xx other than 408 (time-out) and 429 (too many requests)."""
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
