"""The record of a smaller copy: while it is made, in `prepared/`, so that it can go on; in the end `prepared.jsonl`.

Its first line says how the copy was made; each other line is a pair or a background, with its files and their digests, or
why it was left out. A part of the record is written when its files are there.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from raymat.data.dataset.file_names import ANY_NAMES
from raymat.data.dataset.image_folder import Folder
from raymat.data.dataset.listing import FileRow
from raymat.data.dataset.prepared import HEAD, PARTS, RECORD
from raymat.data.preparation.copy_job import CopyOutcome
from raymat.errors import ConfigError, DataError, NewerFormatError
from raymat.storage.bulk import read_many
from raymat.storage.digest import digest
from raymat.storage.fields import Positive, parse_fields, parse_object
from raymat.storage.store import Store, unfinished_files

FORMAT = 1
_HEAD = f"{PARTS}/{HEAD}"
_FLAGS = ("longest", "quality", "alpha")
Sources = tuple[FileRow, ...]


@dataclass(frozen=True, kw_only=True)
class CopyHead:
    """How a copy is made: by which raymat, from where (without secrets), with which options."""

    raymat: str
    source: str
    longest: int
    quality: int
    alpha: str
    format: int = FORMAT
    content: str = ""
    """Digest of the lines below it."""


@dataclass(frozen=True)
class _Format:
    format: Positive


class ReadRecord(NamedTuple):
    """A copy's record: how it was made, and of what it consists."""

    head: CopyHead
    outcomes: tuple[CopyOutcome, ...]


class CopyRecord:
    """Record of the copy in `store` as it is made; `head`: how; `order`: all that is copied, by its sources."""

    def __init__(self, store: Store, head: CopyHead, order: Sequence[Sources]) -> None:
        self._store, self._head = store, head
        self._order = order
        self._new: list[CopyOutcome] = []
        self._found: list[CopyOutcome] = []
        self.done: dict[Sources, CopyOutcome] = {}
        """What is copied, or is found to be unreadable, by its sources."""

    def begin(self) -> None:
        """Find what is copied already. What was left out is tried again: it may have been mended.

        Raises:
            ConfigError: something else is there, or a copy that is made in another way or of another dataset. StorageError.
            DataError: the record of what is there is damaged. NewerFormatError.
        """
        sizes = {info.path: info.size for info in self._store.list()}
        head = self._find(sizes)
        if head is not None:
            self._require_same(head)
        elif sizes:
            raise ConfigError(
                f"{self._store.url} is not empty, and no copy that raymat prepare began: use another folder"
            )
        self._store.write(_HEAD, json.dumps(asdict(self._head)).encode())
        self._store.delete([info.path for info in unfinished_files(self._store)])
        self.done = {o.sources: o for o in self._found if _is_there(o, sizes)}

    def _find(self, sizes: Mapping[str, int]) -> CopyHead | None:
        """Read what the files there record, and return how the copy was begun; None if there is none."""
        head: CopyHead | None = None
        if _HEAD in sizes:
            head = _parse_head(self._store.read(_HEAD), self._shown(_HEAD))
        if RECORD in sizes:
            read = parse(self._store.read(RECORD), self._shown(RECORD))
            self._found += read.outcomes
            head = read.head
        parts = [path for path in sizes if path.startswith(f"{PARTS}/part-")]
        for line in (line for data in read_many(self._store, parts) for line in data.splitlines()):
            with suppress(ValueError):  # what it recorded is copied again
                self._found.append(parse_fields(CopyOutcome, parse_object(line)))
        return head

    def _shown(self, path: str) -> str:
        return f"{self._store.url}/{path}"

    def _require_same(self, head: CopyHead) -> None:
        if head.source != self._head.source and not self._is_same_dataset():
            raise ConfigError(
                f"{self._store.url} is a copy of {head.source}, which has other files: use another folder"
            )
        other = [
            f"--{n} {getattr(head, n)}"
            for n in _FLAGS
            if getattr(head, n) != getattr(self._head, n)
        ]
        if other:
            raise ConfigError(
                f"{self._store.url} was begun with {' '.join(other)}: say the same, or use another folder"
            )

    def _is_same_dataset(self) -> bool:
        """Whether all that is recorded is in the dataset: it is the same one in another place."""
        return {outcome.sources for outcome in self._found} <= {*self._order}

    def add(self, outcome: CopyOutcome) -> None:
        """Note what became of a pair or a background."""
        self.done[outcome.sources] = outcome
        self._new.append(outcome)

    def flush(self) -> None:
        """Write what was noted since. Raises StorageError."""
        if self._new:
            self._store.write(f"{PARTS}/part-{uuid.uuid4().hex}.jsonl", _lines(self._new))
            self._new = []

    def finish(self) -> int:
        """Write the record of a complete copy, and delete what is not in the dataset any more; return how many files that was.

        Raises StorageError.
        """
        outcomes = self.outcomes()
        body = _lines(outcomes)
        head = replace(self._head, content=digest([body]))
        self._store.write(RECORD, [json.dumps(asdict(head)).encode(), b"\n", body])
        kept = {file.path for outcome in outcomes for file in outcome.files}
        stale = {file.path for outcome in self._found for file in outcome.files} - kept
        self._store.delete(sorted(stale))
        self._store.delete([info.path for info in self._store.list(PARTS)])
        return len(stale)

    def strangers(self) -> list[str]:
        """Return the pictures that lie in the copy and are not of it: a run would train on them. Raises StorageError."""
        kept = {file.path for outcome in self.outcomes() for file in outcome.files}
        there = (info.path for info in self._store.list() if info.path not in kept)
        inside = (path for path in there if path.startswith(("train/", "valid/")))
        return sorted(path for path in inside if ANY_NAMES.split(path, False)[1])

    def outcomes(self) -> list[CopyOutcome]:
        """Return what became of everything, in its order; all is copied."""
        return [self.done[sources] for sources in self._order]


def read_record(folder: Folder) -> ReadRecord | None:
    """Read the record of the copy in a folder; None if it is no copy.

    Raises:
        DataError: its record is damaged or cannot be read. NewerFormatError: a newer raymat made it.
    """
    if RECORD not in (folder.entries() or {}):
        return None
    return parse(folder.read(RECORD), folder.shown(RECORD))


def parse(data: bytes, where: str) -> ReadRecord:
    """Parse a record. Raises DataError if it is damaged; NewerFormatError."""
    try:
        first, _, body = data.partition(b"\n")
        head = _parse_head(first, where)
        if head.content != digest([body]):
            raise ValueError("its digest does not match")
        outcomes = tuple(parse_fields(CopyOutcome, parse_object(n)) for n in body.splitlines())
    except ValueError as error:
        raise _damaged(where, error) from error
    return ReadRecord(head, outcomes)


def _parse_head(data: bytes, where: str) -> CopyHead:
    """Parse how a copy is made. Raises DataError if it is damaged; NewerFormatError."""
    try:
        stored = parse_object(data)
        found = parse_fields(_Format, stored).format
        if found > FORMAT:
            raise NewerFormatError(f"{where} has format {found}, this version reads {FORMAT}")
        return parse_fields(CopyHead, stored)
    except ValueError as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> DataError:
    return DataError(f"{where} is damaged ({error}): make the copy anew, in another folder")


def _is_there(outcome: CopyOutcome, sizes: Mapping[str, int]) -> bool:
    return not outcome.left_out and all(sizes.get(f.path) == f.size for f in outcome.files)


def _lines(outcomes: Iterable[CopyOutcome]) -> bytes:
    return b"".join(json.dumps(outcome.to_json()).encode() + b"\n" for outcome in outcomes)
