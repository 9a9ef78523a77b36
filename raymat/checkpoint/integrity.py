"""Verifies committed checkpoints: reads every byte and compares every digest with the manifests.

Files are read in ranges, several files at a time and a few ranges ahead of the digest, so memory grows neither with the
size of a checkpoint nor with their number.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from raymat.checkpoint.catalog import Status
from raymat.checkpoint.layout import CHECKPOINTS
from raymat.checkpoint.manifest import (
    CheckpointId,
    FileEntry,
    manifest_name,
    parse_manifest_name,
    share_names,
)
from raymat.checkpoint.reader import list_files, read_manifests
from raymat.console import ProgressBar
from raymat.errors import CheckpointError
from raymat.storage.digest import matches
from raymat.storage.faults import MissingFileError
from raymat.storage.store import Store

_RANGE = 4 * 2**20
"""Bytes per request."""
_AHEAD = 4
"""Ranges of a file requested ahead of the one being digested."""
_FILES = 4
"""Files read at a time; together they hold at most _FILES * (_AHEAD + 1) * _RANGE bytes, 84 MB."""
_WORLD = re.compile(r"-of-([0-9]{5})\.")

State = Literal["good", "damaged", "torn", "gone", "newer"]


@dataclass(frozen=True)
class Verdict:
    """The outcome for one checkpoint.

    `gone`: removed while it was read, as retention does. `newer`: written by a newer raymat, and not read.
    """

    name: str
    """The checkpoint's, or run.json."""
    state: State
    reason: str = ""
    world: int = 0
    bytes: int = 0
    """Verified, or in storage if nothing was read."""


def verify_checkpoints(
    store: Store,
    statuses: Sequence[Status],
    *,
    run: str | None = None,
    progress: ProgressBar | None = None,
) -> list[Verdict]:
    """Verify each of `statuses`, in their order. `run`: the id that the manifests must carry.

    Those that a newer raymat wrote must be marked: see `mark_newer`.

    Raises:
        StorageError: the storage fails.
    """
    with ExitStack() as stack:
        # Unwound last in, first out: after an interrupt or a failure no further range is requested.
        files, ranges = ThreadPoolExecutor(_FILES), ThreadPoolExecutor(2 * _FILES)
        for pool in (files, ranges):
            stack.callback(pool.shutdown, cancel_futures=True)
        opened = list(files.map(lambda status: _open(store, status, run), statuses))
        jobs = [
            (status, entry)
            for status, entries in zip(statuses, opened, strict=True)
            if not isinstance(entries, Verdict)
            for entry in entries
        ]
        if progress:
            progress.begin(sum(entry.size for _, entry in jobs))
        found = files.map(lambda job: _check_file(store, job[0], job[1], ranges, progress), jobs)
        faults: dict[CheckpointId, str] = {}
        for (status, _), fault in zip(jobs, found, strict=True):
            if fault:
                faults.setdefault(status.id, fault)
    return [
        entries
        if isinstance(entries, Verdict)
        else _judge(store, status, entries, faults.get(status.id))
        for status, entries in zip(statuses, opened, strict=True)
    ]


def newest_verified(
    store: Store,
    statuses: Sequence[Status],
    *,
    run: str | None = None,
    progress: ProgressBar | None = None,
) -> tuple[Status | None, dict[CheckpointId, str]]:
    """Find the newest of `statuses` (newest first) that verifies, and why newer committed ones do not.

    Raises:
        StorageError: the storage fails.
    """
    damaged: dict[CheckpointId, str] = {}
    for status in statuses:
        if status.state == "committed":
            (verdict,) = verify_checkpoints(store, [status], run=run, progress=progress)
            if verdict.state == "good":
                return status, damaged
            damaged[status.id] = f"{verdict.state}: {verdict.reason}"
    return None, damaged


def _open(store: Store, status: Status, run: str | None) -> list[FileEntry] | Verdict:
    """Return the files that a checkpoint's manifests list, or the verdict where that already fails."""
    if status.state == "newer":
        return Verdict(str(status.id), "newer", status.reason, status.world, status.bytes)
    if status.state == "torn":
        # Listed twice: the first listing may have met the checkpoint while it was written or pruned.
        lost = lost_file(status.files) and lost_file(list_files(store, status.id))
        if lost:
            return Verdict(str(status.id), "damaged", lost, status.world, status.bytes)
        reason = status.summary.removeprefix("torn: ")
        return Verdict(str(status.id), "torn", reason, status.world, status.bytes)
    try:
        manifests = read_manifests(store, status.id, status.files, run)
    except CheckpointError as error:
        return _damaged(store, status, error.line)
    return [entry for manifest in manifests for entry in manifest.files]


def lost_file(files: Mapping[str, int]) -> str:
    """Name a file that was written and is missing from the listing `files`; "" if there is none.

    A rank writes its manifest last, and pruning removes it first: a file missing beside its manifest was lost.
    """
    for name in files:
        place = parse_manifest_name(name)
        for needed in (name, *share_names(*place)) if place else ():
            if not files.get(needed):
                return f"{needed} is {'empty' if needed in files else 'missing'}"
    return ""


def missing_manifest(files: Mapping[str, int]) -> str:
    """Say which manifest is missing from the listing `files`, by the world that other names tell; "" if none or unknown."""
    worlds = [int(found[1]) for found in map(_WORLD.search, files) if found]
    for rank in range(max(worlds, default=0)):
        if manifest_name(rank, max(worlds)) not in files:
            return f"{manifest_name(rank, max(worlds))} is missing"
    return ""


def _check_file(
    store: Store, status: Status, entry: FileEntry, ranges: Executor, progress: ProgressBar | None
) -> str:
    """Say what is wrong with a file; "" if nothing is."""
    pieces = _pieces(store, f"{CHECKPOINTS}/{status.id}/{entry.name}", entry.size, ranges, progress)
    try:
        good = matches(entry.digest, pieces)
    except MissingFileError:
        return f"{entry.name} is missing or short"
    return "" if good else f"{entry.name} has another digest than its manifest"


def _pieces(
    store: Store, path: str, length: int, ranges: Executor, progress: ProgressBar | None
) -> Iterator[bytearray]:
    """Yield a file's ranges in order, with a few requested ahead."""

    def read(start: int) -> bytearray:
        piece = bytearray(min(_RANGE, length - start))
        store.read_into(path, start, memoryview(piece))
        return piece

    starts = range(0, length, _RANGE)
    ahead = deque(ranges.submit(read, start) for start in starts[:_AHEAD])
    for later in itertools.chain(starts[_AHEAD:], itertools.repeat(None)):
        if not ahead:
            return
        piece = ahead.popleft().result()
        if later is not None:
            ahead.append(ranges.submit(read, later))
        if progress:
            progress.add(len(piece))
        yield piece


def _judge(
    store: Store, status: Status, entries: Sequence[FileEntry], fault: str | None
) -> Verdict:
    if fault:
        return _damaged(store, status, fault)
    total = sum(entry.size for entry in entries)
    return Verdict(str(status.id), "good", "", status.world, total)


def _damaged(store: Store, status: Status, reason: str) -> Verdict:
    """Judge a checkpoint damaged, unless training or `raymat prune` removed it meanwhile."""
    name = str(status.id)
    manifests = [file for file in list_files(store, status.id) if parse_manifest_name(file)]
    if len(manifests) < status.world:
        return Verdict(name, "gone", "removed meanwhile")
    reason = reason.removeprefix(f"{name} is ").removeprefix("damaged: ")
    return Verdict(name, "damaged", reason, status.world, status.bytes)
