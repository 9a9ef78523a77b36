"""Reads single files that options name: a configuration, weights."""

from __future__ import annotations

from raymat.storage.access import Access
from raymat.storage.retry import RetryPolicy


def read_file(url: str) -> bytes:
    """Return all bytes of the file at a path or any fsspec URL; faults that may pass are retried for half a minute.

    Raises:
        What `faults.backend_errors` lists, as the backend raised it. StorageError: the URL cannot be opened.
    """
    access = Access(url)
    return access.run("read", lambda: bytes(access.filesystem.cat_file(access.path)), RetryPolicy())
