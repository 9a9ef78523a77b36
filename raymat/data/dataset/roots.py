"""Several folders that are one dataset: what is in the second one has paths with @2 in them.

A dataset of one folder has the paths that it always had, so that another folder can be added to it later.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from raymat.data.dataset.image_folder import READ_RETRY, UNKNOWN_SIZE, Folder
from raymat.data.dataset.layout_hints import missing_hint
from raymat.data.dataset.prepared import refuse_unfinished
from raymat.errors import DataError
from raymat.storage.retry import RetryPolicy

_NUMBER = re.compile(r"(^|/)@(\d+)/")


def is_numbered(path: str) -> bool:
    """Whether a path has in front what tells datasets apart."""
    return re.match(r"@\d+/", path) is not None


class Found(NamedTuple):
    """Files in one of the folders."""

    folder: Folder
    prefix: str
    """What their paths have in front, below the folder that was listed."""
    sizes: dict[str, int]
    """Sizes in bytes (-1: unknown) by path, without the prefix."""


class Roots:
    """Folders at fsspec URLs, one a line of `urls`. `answered` and errors as of `Folder`."""

    def __init__(
        self, urls: str, retry: RetryPolicy = READ_RETRY, *, answered: bool = False
    ) -> None:
        self._folders = [Folder(url, retry, answered=answered) for url in urls.split("\n")]
        self.urls = "\n".join(folder.url for folder in self._folders)
        self.remote = any(folder.remote for folder in self._folders)

    def refuse_unfinished(self) -> None:
        """Raise DataError if one of them is a copy that is not complete."""
        for folder in self._folders:
            refuse_unfinished(folder)

    def refuse_twice(self) -> None:
        """Raise DataError if two of them are one folder: each of its pairs would be used twice an epoch."""
        places = [
            folder.url if folder.remote else os.path.realpath(folder.url)
            for folder in self._folders
        ]
        for number, place in enumerate(places):
            if place in places[:number]:
                shown = self._folders[number].shown()
                raise DataError(f"{shown} is given twice: each of its pairs would count twice")

    def shown(self, path: str = "") -> str:
        """Return the URL of a path as messages may show it; without a path, all URLs."""
        if not path:
            return " and ".join(folder.shown() for folder in self._folders)
        number, there = self.locate(path)
        return self._folders[number].shown(there)

    def read(self, path: str, size: int = UNKNOWN_SIZE) -> bytes:
        """Return all bytes of a file, as `Folder.read` does."""
        number, there = self.locate(path)
        return self._folders[number].read(there, size)

    def find(self, path: str, is_junk: Callable[[str], bool], optional: bool) -> list[Found]:
        """List every file below `path` in each of the folders; `optional`: some of them may lack it.

        Raises:
            DataError: one of them lacks it, and what is there instead, or the storage cannot be listed.
        """
        found = []
        lacking = ""
        for number, folder in enumerate(self._folders, 1):
            sizes = folder.find(path, is_junk)
            if sizes is not None:
                found.append(Found(folder, f"@{number}/" if number > 1 else "", sizes))
            elif not lacking:
                lacking = f"no such folder: {folder.shown(path)}{missing_hint(folder, path)}"
        if lacking and not (optional and found):
            raise DataError(lacking)
        return found

    def locate(self, path: str) -> tuple[int, str]:
        """Return which folder has a path, counted from 0, and the path in it."""
        number = _NUMBER.search(path) if len(self._folders) > 1 else None
        if number is None:
            return 0, path
        return int(number[2]) - 1, path.replace(f"@{number[2]}/", "", 1)
