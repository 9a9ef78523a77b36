"""A folder of images at any fsspec URL: listed with few requests, read with patience.

Three outcomes of a read are told apart, because they end differently:

- the bytes;
- `UnreadableImage`: this file cannot be had, now or later (not found, forbidden, another size than
  listed). The batch takes another example instead and says so;
- `DataError`: the storage did not answer in spite of retries. Taking other examples would then
  train on something else than an undisturbed run, so the attempt ends and the run resumes later.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from raymat.errors import DataError
from raymat.storage.urls import shown

UNKNOWN_SIZE = -1

_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_DRIVER_ERRORS = {
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "aiohttp": ("ClientError",),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "azure.core.exceptions": ("AzureError",),
}


class UnreadableImage(DataError):
    """One image that cannot be had: its `path` (with the URL) and the `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def driver_errors() -> tuple[type[BaseException], ...]:
    """What storage drivers raise: OSError, time-outs, and the own classes of those drivers that are loaded."""
    own = (
        getattr(sys.modules[module], name)
        for module, names in _DRIVER_ERRORS.items()
        if module in sys.modules
        for name in names
    )
    return (OSError, TimeoutError, asyncio.TimeoutError, *own)


@dataclass(frozen=True)
class Retry:
    """How often a read is tried, and how long it waits in between: seconds, doubled each time."""

    attempts: int = 6
    first_delay: float = 0.5

    def delays(self, path: str) -> Iterator[float]:
        """The waits between the attempts at `path`, spread by up to a half so that readers do not return in step."""
        for attempt in range(self.attempts - 1):
            spread = zlib.crc32(f"{attempt} {path}".encode(errors="surrogateescape")) / 2**32
            yield self.first_delay * 2**attempt * (1 - spread / 2)


class Folder:
    """A folder at an fsspec URL.

    Raises:
        DataError: the URL names a protocol that is unknown or whose driver is not installed.
    """

    def __init__(self, url: str, retry: Retry | None = None) -> None:
        self._retry = retry or Retry()
        try:
            fs, root = url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise DataError(f"cannot open {shown(url)}: {_reason(error)}") from error
        except driver_errors() as error:
            raise DataError(f"cannot open {shown(url)}: {_reason(error)}") from error
        self._fs: fsspec.AbstractFileSystem = fs
        self._root = str(root).rstrip("/")
        # Local: absolute, since it is read again by processes that run elsewhere.
        self.url = self._root if isinstance(fs, LocalFileSystem) else url.rstrip("/")

    @property
    def remote(self) -> bool:
        """Whether a read waits for a network rather than for a disk."""
        return not isinstance(self._fs, (LocalFileSystem, MemoryFileSystem))

    def shown(self, path: str = "") -> str:
        """The URL of a path in this folder as messages may show it."""
        return shown(f"{self.url}/{path}" if path else self.url)

    def find(self, path: str) -> dict[str, int] | None:
        """Every file below `path`: its path from there, and its size in bytes (-1: the storage does not say).

        One recursive listing. Files and folders whose name begins with a dot are left out; links
        are followed.

        Returns:
            None if there is no such folder.

        Raises:
            DataError: the storage cannot be listed.
        """
        try:
            if isinstance(self._fs, LocalFileSystem):
                root = f"{self._root}/{path}"
                return dict(_walk(root, "", ())) if os.path.isdir(root) else None
            return self._find_remote(f"{self._root}/{path}")
        except driver_errors() as error:
            raise DataError(f"cannot list {self.shown(path)}: {_reason(error)}") from error

    def _find_remote(self, root: str) -> dict[str, int] | None:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(root, detail=True)
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
        seen = {path: size for path, size in sizes.items() if "/." not in f"/{path}"}
        return seen or ({} if self._fs.exists(root) else None)

    def read(self, path: str, size: int = UNKNOWN_SIZE) -> bytes:
        """All bytes of a file, which should have `size` bytes. Passing faults are waited out.

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
        delays = self._retry.delays(path)
        while True:
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{path}"))
            except driver_errors() as error:
                self._refuse_if_permanent(path, error)
                delay = next(delays, None)
                if delay is None:
                    raise DataError(
                        f"cannot read {self.shown(path)} after {self._retry.attempts} attempts: {_reason(error)}"
                    ) from error
                time.sleep(delay)

    def _refuse_if_permanent(self, path: str, error: BaseException) -> None:
        """Raise UnreadableImage for an error that no retry can mend."""
        if isinstance(error, FileNotFoundError):
            raise UnreadableImage(self.shown(path), "not found") from error
        if isinstance(error, _PERMANENT) or _is_client_fault(error) or self._is_bad_disk(error):
            raise UnreadableImage(self.shown(path), _reason(error)) from error

    def _is_bad_disk(self, error: BaseException) -> bool:
        """An input/output error of a local disk belongs to the file; from a bucket it is a server's passing fault."""
        return not self.remote and isinstance(error, OSError) and error.errno == errno.EIO


def _walk(root: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int]]:
    """Files below a local folder, links followed (fsspec's own listing does not); a link to a folder above is not entered."""
    status = os.stat(root)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
            else:
                yield prefix + entry.name, _local_size(entry)


def _local_size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # a link to nowhere: listed as empty, and refused as such
        return 0


def _size_of(info: dict[str, Any]) -> int:
    size = info.get("size")
    return UNKNOWN_SIZE if size is None else int(size)


def _is_client_fault(error: BaseException) -> bool:
    """HTTP's 4xx, other than a time-out (408) and too many requests (429)."""
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)


def _reason(error: BaseException) -> str:
    """An error's text in one line; its class where it has none."""
    if isinstance(error, OSError) and error.strerror:
        return str(error.strerror)
    return " ".join(str(error).split()) or type(error).__name__
