"""Merging of events: the objects of logs that write no more become one, with the same lines."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass

from raymat.storage.bulk import read_many
from raymat.storage.store import FileInfo, Store
from raymat.train.observability.events import FOLDER
from raymat.train.observability.merging.merge_plan import next_merge

QUIET_SECONDS = 60.0
"""How long a log of another attempt, or of a driver, has to stand still, by this process's clock."""
_MERGED = "merged"
_NAME = re.compile(rf"(?:^|/){FOLDER}/((?:a(\d+)-)?([a-z]+)-.+)-(\d+)\.jsonl$")


@dataclass(frozen=True)
class _Object:
    """An object in the listing, and what its name says."""

    path: str
    size: int
    log: str
    attempt: int | None
    """None: a driver's."""
    merged: bool
    number: int

    @classmethod
    def parse(cls, file: FileInfo) -> _Object | None:
        match = _NAME.search(file.path)
        if match is None:
            return None
        attempt = None if match[2] is None else int(match[2])
        return cls(file.path, file.size, match[1], attempt, match[3] == _MERGED, int(match[4]))


class EventsMerge:
    """Merges the events of all attempts, as long as no later one has begun.

    An event is its line: readers take a line that comes twice for one event. So nothing is doubled if the process is
    killed before the parts are deleted, or if a log that was taken for dead writes again: it writes all of its lines.
    """

    def __init__(self, store: Store, attempt: int) -> None:
        self._store, self._attempt = store, attempt
        self._seen: dict[str, tuple[int, float]] = {}
        """By object: its size, and since when this process has seen it at that size."""

    def __call__(self) -> bool:
        """Merge one group; return whether there may be another.

        Raises:
            StorageError: the storage fails, or another has merged the same meanwhile.
        """
        objects = [o for file in self._store.list(FOLDER) if (o := _Object.parse(file))]
        if any((o.attempt or 0) > self._attempt for o in objects):
            return False
        # Their order means nothing, as readers sort by time: objects of like size become neighbours.
        final = sorted(self._final(objects), key=lambda o: -o.size)
        group = next_merge([o.size for o in final])
        if group is None:
            return False
        self._merge([o.path for o in final[group]])
        return True

    def _final(self, objects: list[_Object]) -> list[_Object]:
        """Return the objects that nobody will write again."""
        now = time.monotonic()
        before, self._seen = self._seen, {}
        newest: dict[str, int] = {}
        for o in objects:
            newest[o.log] = max(newest.get(o.log, 0), o.number)
            size, since = before.get(o.path, (o.size, now))
            self._seen[o.path] = (o.size, since if size == o.size else now)
        return [
            o
            for o in objects
            if o.merged
            or o.number < newest[o.log]
            or (o.attempt != self._attempt and now - self._seen[o.path][1] >= QUIET_SECONDS)
        ]

    def _merge(self, paths: list[str]) -> None:
        contents = dict(zip(paths, read_many(self._store, paths), strict=True))
        lines = {line: None for data in contents.values() for line in data.splitlines()}
        path = f"{FOLDER}/a{self._attempt:03d}-{_MERGED}-{uuid.uuid4().hex[:8]}-00000.jsonl"
        self._store.write(path, b"".join(line + b"\n" for line in lines))
        # A log that was taken for dead may have added to its object meanwhile: that one stays.
        sizes = {file.path: file.size for file in self._store.list(FOLDER)}
        self._store.delete([p for p in paths if sizes.get(p) == len(contents[p])])
