"""Backend of everything that fsspec reaches: object stores, where one put is atomic, and memory."""

from __future__ import annotations

import bisect
import contextlib
import datetime
import errno
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raymat.storage.access import Access
from raymat.storage.digest import Buffer
from raymat.storage.faults import backend_errors, classify
from raymat.storage.filesystems import find_files

_PART = 16 * 2**20
"""Bytes of one part of a multipart upload; 4 parts at a time bound the extra memory."""


class FsspecBackend:
    """Backend of a storage that fsspec reaches."""

    def __init__(self, access: Access) -> None:
        self._access = access
        protocol = access.filesystem.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self._deletes_in_bulk = self._is("s3", "s3a")

    @property
    def filesystem(self) -> Any:
        """The file system of the newest keys."""
        return self._access.filesystem

    def read(self, path: str) -> bytes:
        """See `Backend`."""
        return bytes(self.filesystem.cat_file(path))

    def read_into(self, path: str, offset: int, view: memoryview) -> int:
        """See `Backend`: send one ranged request."""
        if not len(view):
            return 0
        data = self.filesystem.cat_file(path, start=offset, end=offset + len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, path: str, chunks: Sequence[Buffer]) -> None:
        """See `Backend`. Holds a copy of the file meanwhile, since providers want one piece; on S3, of 4 parts only."""
        if self._is("http", "https"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        if self._is("s3", "s3a"):
            pieces = Pieces(chunks)
            # From two parts on the upload is a multipart one, which takes the parts as slices.
            data = pieces if len(pieces) >= 2 * _PART else pieces[: len(pieces)]
            self.filesystem.pipe_file(path, data, chunksize=_PART, max_concurrency=4)
        else:
            self.filesystem.pipe_file(path, b"".join(chunks))

    def list(self, folder: str) -> Iterator[tuple[str, int, float]]:
        """See `Backend`: list recursively in one call, bypassing caches, since others write there too."""
        self.filesystem.invalidate_cache()
        for path, info in find_files(self.filesystem, folder).items():
            if info.get("type") == "file" and path != folder:
                yield path, int(info["size"]), _modified(info)

    def folders(self, path: str) -> Sequence[str]:
        """See `Backend`: list one level, bypassing caches."""
        self.filesystem.invalidate_cache()
        found = self.filesystem.ls(path, detail=True)
        names = [
            info["name"].rstrip("/").rpartition("/")[2]
            for info in found
            if info["type"] == "directory"
        ]
        return [name for name in names if name]

    def delete(self, paths: Sequence[str]) -> None:
        """See `Backend`: remove up to 1000 files a request on S3, 100 on Google, one elsewhere."""
        if self._is("gs", "gcs"):
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.rm(list(paths))
        elif not (self._deletes_in_bulk and self._delete_in_bulk(paths)):
            with ThreadPoolExecutor(max_workers=8) as pool:
                list(pool.map(self._delete_one, paths))

    def _delete_in_bulk(self, paths: Sequence[str]) -> bool:
        """Remove files with one request; return whether this server takes such a request, and remember if not."""
        from raymat.storage.s3 import delete_objects  # botocore takes a second to load

        try:
            delete_objects(self.filesystem, paths)
        except backend_errors() as error:
            fault = classify(error, "delete from")
            if fault.transient or fault.kind != "other":
                raise
            self._deletes_in_bulk = False
        return self._deletes_in_bulk

    def _delete_one(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(path)

    def _is(self, *protocols: str) -> bool:
        return bool(self._protocols & set(protocols))


class Pieces:
    """Sequence of buffers that looks like one: pieces are joined only when sliced.

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


_MODIFIED_KEYS = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


def _modified(info: Mapping[str, Any]) -> float:
    """Return the modification time in Unix seconds, from whatever form a provider gives it in; 0 if it gives none."""
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
