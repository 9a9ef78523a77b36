"""Reads of many small objects: several requests at a time, and a listing that was overtaken is made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from raymat.storage.faults import MissingFileError
from raymat.storage.store import Store

T = TypeVar("T")

_THREADS = 8
_WINDOW = 64
"""Files that are asked for ahead, which bounds the memory of what nobody has taken yet."""
_LISTINGS = 5


def read_many(store: Store, paths: Sequence[str]) -> Iterator[bytes]:
    """Yield the contents of `paths`, in their order. Raises MissingFileError, StorageError."""
    if len(paths) <= 1:
        yield from map(store.read, paths)
        return
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="read") as pool:
        for start in range(0, len(paths), _WINDOW):
            yield from pool.map(store.read, paths[start : start + _WINDOW])


def until_present(read: Callable[[], T]) -> T:
    """Return `read()`, which lists a folder and reads what it found, again if a file was merged into another meanwhile.

    Raises:
        MissingFileError: files vanish again and again. StorageError: the storage cannot be read.
    """
    for _ in range(_LISTINGS - 1):
        try:
            return read()
        except MissingFileError:
            continue
    return read()
