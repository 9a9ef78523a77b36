"""The two ways to reach bytes: a local folder, and anything else through fsspec.

Paths here are absolute in the backend's own notation ("/runs/name/x", "bucket/runs/name/x").
"""

from __future__ import annotations

import bisect
import contextlib
import datetime
import errno
import itertools
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from raymat.storage.digest import Buffer

TEMPORARY = ".tmp-"
"""How the name of a file starts that is being written, or was when its writer died."""

_PART = 16 * 2**20
"""Bytes of a multipart upload's part: 4 at a time bound what it holds beside the file itself."""


_WINDOW = 32 * 2**20
"""Bytes of a local file that are written before they are synced and leave the page cache."""


class Backend(Protocol):
    """What `Store` needs. Faults are whatever `faults.backend_errors` lists."""

    def read(self, path: str) -> bytes:
        """All of a file."""

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset` on; the bytes read, fewer only at the file's end."""

    def write(self, path: str, chunks: Sequence[Buffer]) -> None:
        """Make a file of the chunks: durable afterwards, and at no moment visible in part."""

    def list(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """(path, bytes, modified in Unix seconds) of each file below `folder`, if there are any."""

    def delete(self, paths: Sequence[str]) -> None:
        """Remove files; those that are not there are no fault. Folders left empty may go too."""


class LocalBackend:
    """A folder of this machine, or one that is mounted."""

    def read(self, path: str) -> bytes:
        """See `Backend`."""
        return Path(path).read_bytes()

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        """See `Backend`."""
        done = 0
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while done < len(view):
                got = file.readinto(view[done:])
                if not got:
                    break
                done += got
        return done

    def write(self, path: str, chunks: Iterable[Buffer]) -> None:
        """See `Backend`: a temporary file beside it, synced, renamed, and the folder synced."""
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{name}")
        try:
            with _create(temporary) as file:
                for window in _windows(chunks, _WINDOW):
                    file.writelines(window)
                    _settle(file)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync_folder(folder)

    def list(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """See `Backend`. Only regular files: opening a named pipe would wait for ever."""
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        for entry in entries:
            # A file may be renamed or removed by its owner between the two calls: then it is not
            # there.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    yield from self.list(entry.path)
                    continue
                found = entry.stat()
                if stat.S_ISREG(found.st_mode):
                    yield entry.path, found.st_size, found.st_mtime

    def delete(self, paths: Sequence[str]) -> None:
        """See `Backend`."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for folder in {os.path.dirname(path) for path in paths}:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


class FsspecBackend:
    """Anything that fsspec reaches: object stores, where one put is atomic, and memory."""

    def __init__(self, filesystem: Any) -> None:
        self.filesystem = filesystem
        protocol = filesystem.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)

    def read(self, path: str) -> bytes:
        """See `Backend`."""
        return bytes(self.filesystem.cat_file(path))

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        """See `Backend`: one ranged request."""
        if not len(view):
            return 0
        data = self.filesystem.cat_file(path, start=offset, end=offset + len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, path: str, chunks: Sequence[Buffer]) -> None:
        """See `Backend`. Holds a copy of the file meanwhile, as providers want it in one piece, but on S3 of 4 parts."""
        if self._is("s3", "s3a"):
            pieces = Pieces(chunks)
            # From two parts on the upload is a multipart one, which takes the parts as slices.
            data = pieces if len(pieces) >= 2 * _PART else pieces[: len(pieces)]
            self.filesystem.pipe_file(path, data, chunksize=_PART, max_concurrency=4)
        else:
            self.filesystem.pipe_file(path, b"".join(chunks))

    def list(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """See `Backend`: one recursive listing, past every cache, since others write there too."""
        self.filesystem.invalidate_cache()
        for path, info in self.filesystem.find(folder, detail=True).items():
            if info.get("type") == "file" and path != folder:
                yield path, int(info["size"]), _modified(info)

    def delete(self, paths: Sequence[str]) -> None:
        """See `Backend`: up to 1000 in a request on S3, 100 on Google, one each elsewhere."""
        if self._is("s3", "s3a", "gs", "gcs"):
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.rm(list(paths))
            return
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(self._delete_one, paths))

    def _delete_one(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(path)

    def _is(self, *protocols: str) -> bool:
        return bool(self._protocols & set(protocols))


class Pieces:
    """Buffers one after another as if they were one: joined only where they are sliced.

    Joining all of a large file would hold the GIL, and with it the training thread, for as long as its copying takes.
    """

    def __init__(self, pieces: Sequence[Buffer]) -> None:
        self._pieces = [memoryview(piece).cast("B") for piece in pieces]
        self._starts = [0, *itertools.accumulate(map(len, self._pieces))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, span: slice) -> bytes:
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError("only consecutive bytes can be taken")
        first = max(0, bisect.bisect_right(self._starts, start) - 1)
        found = []
        for begin, piece in zip(self._starts[first:], self._pieces[first:], strict=False):
            if begin >= stop:
                break
            found.append(piece[max(0, start - begin) : stop - begin])
        return b"".join(found)


def _create(path: str) -> BinaryIO:
    """Open a new file and make its folder, again if a `delete` took that away in between."""
    for _ in range(3):
        _make_folder(os.path.dirname(path))
        with contextlib.suppress(FileNotFoundError):
            return open(path, "xb", buffering=2**20)
    return open(path, "xb", buffering=2**20)


def _windows(chunks: Iterable[Buffer], size: int) -> Iterator[list[memoryview]]:
    """The chunks cut up and grouped into `size` bytes each, the last fewer; at least one group."""
    window: list[memoryview] = []
    room = size
    for chunk in chunks:
        rest = memoryview(chunk).cast("B")
        while len(rest) > room:
            window.append(rest[:room])
            yield window
            rest, window, room = rest[room:], [], size
        window.append(rest)
        room -= len(rest)
    yield window


def _settle(file: BinaryIO) -> None:
    """Sync what was written, and let go of its pages.

    Nobody reads a checkpoint soon: its pages would push out the dataset's, and each new page costs
    the processor more than the same few used again (1.1 CPU s against 0.3 for 483 MB).
    """
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _make_folder(folder: str) -> None:
    """Make `folder` and its parents, all durable: a file goes with a folder that a crash forgets."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    if parent != folder:
        _make_folder(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
        _sync_folder(parent)
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; their rename is as durable as they make
        # it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


_MODIFIED_KEYS = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


def _modified(info: Mapping[str, Any]) -> float:
    """Unix seconds from whatever form a provider gives the time in; 0 if it gives none."""
    for key in _MODIFIED_KEYS:
        value = info.get(key)
        if isinstance(value, str):
            value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
        if isinstance(value, datetime.datetime):
            if value.tzinfo is None:
                value = value.replace(tzinfo=datetime.timezone.utc)
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0
