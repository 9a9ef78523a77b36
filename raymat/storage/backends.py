"""What a store asks of a storage, and the backend of a local folder.

Paths here are absolute in the backend's own notation ("/runs/name/x", "bucket/runs/name/x").
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from raymat.storage.digest import Buffer

TEMPORARY = ".tmp-"
"""Prefix of files that are being written, or were when their writer died."""

_TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY)}(\d+)-[0-9a-f]{{8}}(-|$)")
_WINDOW = 32 * 2**20
"""Bytes of a local file that are written between two syncs."""


class Backend(Protocol):
    """Operations that `Store` needs of a storage; they raise what `faults.backend_errors` lists."""

    def read(self, path: str) -> bytes:
        """Return all bytes of a file."""

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset` on; return the number of bytes read, fewer only at the file's end."""

    def write(self, path: str, chunks: Sequence[Buffer]) -> None:
        """Write a file: durable on return, and never visible in part."""

    def list(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """Yield (path, bytes, modified in Unix seconds) of each file below `folder`."""

    def folders(self, path: str) -> Sequence[str]:
        """Return the names of the folders right below a folder."""

    def delete(self, paths: Sequence[str]) -> None:
        """Remove files, ignoring missing ones. Folders left empty may be removed too."""


class LocalBackend:
    """Backend of a folder of this machine, mounted ones included."""

    def __init__(self) -> None:
        self.kept: str | None = None
        """A folder that is never made anew: it was there, and where it is missing it was removed or unmounted."""

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
        """See `Backend`: write a temporary file in the same folder, sync and rename it, and sync the folder."""
        with draft_of(path) as temporary, _create(temporary, self.kept) as file:
            for window in _windows(chunks, _WINDOW):
                file.writelines(window)
                _sync_and_drop(file)

    def list(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """See `Backend`. Lists regular files only: opening a named pipe would block for ever."""
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            return
        for entry in entries:
            # Its owner may rename or remove a file between the two calls.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    yield from self.list(entry.path)
                    continue
                found = entry.stat()
                if stat.S_ISREG(found.st_mode):
                    yield entry.path, found.st_size, found.st_mtime

    def folders(self, path: str) -> Sequence[str]:
        """See `Backend`."""
        return [entry.name for entry in os.scandir(path) if entry.is_dir()]

    def delete(self, paths: Sequence[str]) -> None:
        """See `Backend`."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        for folder in {os.path.dirname(path) for path in paths}:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


@contextlib.contextmanager
def draft_of(path: str) -> Iterator[str]:
    """Yield the name of a temporary file in the same folder, which the block writes and which then becomes `path`.

    The block syncs it. Where the block fails, it is removed. What a killed process leaves, `remove_dead_temporaries` finds.
    """
    folder = os.path.dirname(path)
    # Without its name: TensorBoard reads every file whose name says that it is an event file.
    temporary = os.path.join(folder, f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}")
    try:
        yield temporary
        _rename(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    _sync_folder(folder)


def _rename(temporary: str, path: str) -> None:
    try:
        os.replace(temporary, path)
    except FileNotFoundError as error:
        # Somebody took it for a dead writer's. This is an error that is tried again.
        raise OSError(errno.ESTALE, "what was written of it was removed", path) from error


def remove_dead_temporaries(folder: str) -> None:
    """Remove temporary files in `folder` whose writers do not run on this machine.

    One of another machine that lives writes its file again.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _TEMPORARY_NAME.match(entry.name)
            if match and not _is_running(int(match[1])):
                os.unlink(entry.path)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _create(path: str, kept: str | None) -> BinaryIO:
    """Open a new file and make its folder, again if a `delete` removed it in between."""
    for _ in range(3):
        _make_folder(os.path.dirname(path), kept)
        with contextlib.suppress(FileNotFoundError):
            return open(path, "xb", buffering=2**20)
    return open(path, "xb", buffering=2**20)


def _windows(chunks: Iterable[Buffer], size: int) -> Iterator[list[memoryview]]:
    """Yield the chunks cut and grouped into `size` bytes each, the last group smaller; at least one group."""
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


def _sync_and_drop(file: BinaryIO) -> None:
    """Sync what was written, and drop its pages from the cache.

    A checkpoint is rarely read soon: its pages would evict the dataset's, and new pages cost more than reused ones
    (1.1 CPU s against 0.3 for 483 MB).
    """
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _make_folder(folder: str, kept: str | None) -> None:
    """Make `folder` and its parents but for `kept`, all durable: a folder that a crash loses takes its files with it."""
    if os.path.isdir(folder):
        return
    if folder == kept:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
    parent = os.path.dirname(folder)
    if parent != folder:
        _make_folder(parent, kept)
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
        # Some network file systems cannot sync a folder; their rename is as durable as it gets.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
