"""Local cache: copies of the newest shards on this machine's disk, which spare a restart their download.

    FOLDER/raymat-UID/RUN ID/step-000001200-a003-blake3-5f3c....safetensors

Only the manifests in storage say what a checkpoint is; a copy replaces a shard's bytes if it has the digest that they
name. Copies may be lost at any time, and no fault here stops a run: it costs a download.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from raymat.checkpoint.manifest import CheckpointId, FileEntry
from raymat.storage.backends import TEMPORARY, LocalBackend
from raymat.storage.digest import Buffer, is_digest, matches
from raymat.storage.store import Store

log = logging.getLogger(__name__)

KEPT = 2
"""Number of checkpoints whose copies a machine keeps: some workers may not have written the newest."""

FORGOTTEN_SECONDS = 86_400.0
"""Age after which the copies of a run are removed by any other run that starts."""

LEAST_FREE = 0.1
"""Share of the disk that copies leave free; Ray takes no more objects at a twentieth."""

_SUFFIX = ".safetensors"


def cache_folder(choice: str, store: Store, temporary: str) -> str | None:
    """Return the folder that `--nearby` chooses, None for none: `auto` is `temporary`, unless the storage is a folder itself."""
    if choice == "auto":
        return None if isinstance(store.backend, LocalBackend) else temporary
    return None if choice == "off" else choice


def assign_copies(
    files: Sequence[FileEntry], held: Sequence[Collection[str]]
) -> list[list[FileEntry]]:
    """Assign each file to a rank that reads it from its disk, given the names of the copies that each rank holds.

    The largest file first, each to the holder that has the fewest bytes so far.
    """
    shares: list[list[FileEntry]] = [[] for _ in held]
    loads = [0] * len(held)
    for entry in sorted(files, key=lambda entry: (-entry.size, entry.name)):
        holders = [rank for rank, names in enumerate(held) if entry.name in names]
        if holders:
            rank = min(holders, key=lambda rank: (loads[rank], rank))
            loads[rank] += entry.size
            shares[rank].append(entry)
    return shares


@dataclass(frozen=True)
class _Copy:
    path: str
    checkpoint: CheckpointId
    digest: str
    size: int


class CacheObserver(Protocol):
    """Whoever wants to know of faults of the cache. Called in the thread that met them; must return at once."""

    def copy_damaged(self, checkpoint: CheckpointId, file: str, reason: str) -> None:
        """A copy of the shard `file` was damaged and is removed."""

    def copies_off(self, reason: str) -> None:
        """No copies are kept any more."""


class LocalCache:
    """Cache of one run's shards on this machine, made by `LocalCache.open` and shared by all workers of the machine."""

    def __init__(self, own: str, run: str, observer: CacheObserver) -> None:
        self._own = own
        self._folder = os.path.join(own, run)
        self._observer = observer
        self._stopped = threading.Event()
        self._found: dict[str, _Copy] = {}
        """Copies by digest, as of `held`."""
        self._files = LocalBackend()

    @classmethod
    def open(cls, folder: str, run: str, observer: CacheObserver) -> LocalCache | None:
        """Open the cache of the run with the id `run` below `folder`; None, which is reported, if that cannot be used.

        Removes temporary files of dead writers and the forgotten copies of other runs. Called before any worker keeps
        a copy.
        """
        cache = cls(os.path.join(folder, f"raymat-{os.geteuid()}"), run, observer)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
            cache._give_up(f"{run[:60]!r} cannot be the name of a folder")
            return None
        try:
            os.makedirs(folder, exist_ok=True)
            cache._make_folder()
            _clear_forgotten(cache._own, run)
            for name in os.listdir(cache._folder):
                if name.startswith(TEMPORARY):
                    _unlink(os.path.join(cache._folder, name))
        except OSError as error:
            cache._give_up(str(error))
            return None
        return cache

    def keep(
        self,
        checkpoint: CheckpointId,
        entry: FileEntry,
        pieces: Sequence[Buffer],
        is_superseded: Callable[[], bool] = lambda: False,
    ) -> None:
        """Copy a shard that is durable in storage, after removing old ones so that KEPT checkpoints are left.

        Stops as soon as `is_superseded`. A disk that fails ends all copying, with one event.
        """
        if self._stopped.is_set():
            return
        try:
            self._make_folder()
            self._remove_old(checkpoint)
            usage = shutil.disk_usage(self._folder)
            if usage.free - entry.size < LEAST_FREE * usage.total:
                raise OSError(errno.ENOSPC, "the disk is nearly full", self._folder)
            path = os.path.join(self._folder, _name(checkpoint, entry.digest))
            self._files.write(path, _until_superseded(pieces, is_superseded))
        except _SupersededError:
            return
        except OSError as error:
            self._give_up(str(error))

    def held(self, files: Sequence[FileEntry]) -> frozenset[str]:
        """Return the names of a checkpoint's files that seem to be cached here; none of them is read yet."""
        self._found = {copy.digest: copy for copy in self._copies()}
        held = {entry.name for entry in files if entry.digest in self._found}
        for entry in (entry for entry in files if entry.name in held):
            size = self._found[entry.digest].size
            if size != entry.size:
                self._discard(entry, f"it has {size} bytes, expected {entry.size}")
                held.remove(entry.name)
        return frozenset(held)

    def read(self, entry: FileEntry, view: memoryview) -> bool:
        """Fill `view` with a file that was `held`; return whether its digest is right. A damaged copy is removed, with an event."""
        try:
            got = self._files.read_into(self._found[entry.digest].path, 0, view)
        except OSError as error:
            self._discard(entry, f"it cannot be read: {error}")
            return False
        if got < len(view) or not matches(entry.digest, [view]):
            self._discard(entry, "it has another digest")
            return False
        return True

    def forget_all_but(self, files: Collection[FileEntry]) -> None:
        """Remove the copies of all other files. What is newer than the checkpoint that a run resumes from is torn or
        damaged. Called before any worker keeps another copy."""
        digests = {entry.digest for entry in files}
        for copy in self._copies():
            if copy.digest not in digests:
                _unlink(copy.path)

    def stop(self) -> None:
        """Stop copying: no restart will need it."""
        self._stopped.set()

    def remove(self) -> None:
        """Remove the run's copies; none is left once the last worker has called this."""
        self.stop()
        _remove(self._folder)

    def _make_folder(self) -> None:
        """Make the run's folder, again if it was cleaned up as temporary. Raises OSError."""
        _require_own(self._own)
        _require_own(self._folder)

    def _copies(self) -> list[_Copy]:
        """List the copies, oldest checkpoint first."""
        try:
            return sorted(_copies_in(self._folder), key=lambda copy: copy.checkpoint)
        except OSError:
            return []

    def _remove_old(self, newest: CheckpointId) -> None:
        """Remove old copies, so that KEPT checkpoints are left with `newest`."""
        copies = self._copies()
        kept = sorted({copy.checkpoint for copy in copies} | {newest})[-KEPT:]
        for copy in copies:
            if copy.checkpoint not in kept:
                _unlink(copy.path)

    def _discard(self, entry: FileEntry, reason: str) -> None:
        copy = self._found[entry.digest]
        _unlink(copy.path)
        self._observer.copy_damaged(copy.checkpoint, entry.name, reason)

    def _give_up(self, reason: str) -> None:
        if self._stopped.is_set():  # the run is over, and another worker has removed the folder
            return
        self.stop()
        log.warning("no copies of shards are kept on this machine's disk: %s", reason)
        self._observer.copies_off(reason)


class _SupersededError(Exception):
    """Signal that a copy is given up for more urgent work."""


def _until_superseded(
    pieces: Iterable[Buffer], is_superseded: Callable[[], bool]
) -> Iterator[Buffer]:
    for piece in pieces:
        if is_superseded():
            raise _SupersededError
        yield piece


def _name(checkpoint: CheckpointId, digest: str) -> str:
    return f"{checkpoint}-{digest.replace(':', '-')}{_SUFFIX}"


def _copies_in(folder: str) -> Iterator[_Copy]:
    for entry in list(os.scandir(folder)):
        match = re.fullmatch(r"(step-\d+-a\d+)-([a-z0-9]+)-([0-9a-f]+)\.safetensors", entry.name)
        if match is None or not entry.is_file(follow_symlinks=False):
            continue
        checkpoint, digest = CheckpointId.try_parse(match[1]), f"{match[2]}:{match[3]}"
        with contextlib.suppress(FileNotFoundError):  # another worker removed it in between
            if checkpoint is not None and is_digest(digest):
                yield _Copy(entry.path, checkpoint, digest, entry.stat().st_size)


def _require_own(folder: str) -> None:
    """Make a private folder; an existing one must be ours. Raises OSError.

    In a shared temporary folder somebody else could have made it first.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
    if found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it belongs to somebody else", folder)
    if stat.S_IMODE(found.st_mode) != 0o700:
        os.chmod(folder, 0o700)


def _clear_forgotten(own: str, mine: str) -> None:
    """Remove the folders of other runs in which nothing was written for a day."""
    for run in list(os.scandir(own)):
        with contextlib.suppress(FileNotFoundError):
            if run.name != mine and run.is_dir(follow_symlinks=False):
                files = (entry.stat(follow_symlinks=False) for entry in os.scandir(run.path))
                newest = max([run.stat().st_mtime, *(found.st_mtime for found in files)])
                if time.time() - newest > FORGOTTEN_SECONDS:
                    _remove(run.path)


def _remove(folder: str) -> None:
    """Remove the copies in a folder, and the folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(TEMPORARY) or name.endswith(_SUFFIX):
                _unlink(os.path.join(folder, name))
        os.rmdir(folder)


def _unlink(path: str) -> None:
    """Remove a file if it is still there and can be removed."""
    with contextlib.suppress(OSError):
        os.unlink(path)
