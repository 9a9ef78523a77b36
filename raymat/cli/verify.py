"""`raymat verify`: read every byte that a run has committed, and compare every digest.

Files are read in ranges, a few of them at the same time and a few ranges ahead of the digest: what
is in memory does not grow with the size of a checkpoint or the number of them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from raymat.checkpoint.catalog import Status
from raymat.checkpoint.layout import CHECKPOINTS
from raymat.checkpoint.manifest import CheckpointId, FileEntry, parse_manifest_name, share_names
from raymat.checkpoint.shards import list_files, read_manifests
from raymat.cli.runs import list_checkpoints, open_url, why
from raymat.console import ProgressBar, Url, columns, parse_options, size
from raymat.errors import CheckpointError, StorageError
from raymat.storage.digest import matches
from raymat.storage.faults import MissingFileError
from raymat.storage.store import Store
from raymat.train.run.run_file import RUN_FILE, read_run

GOOD, DAMAGED = 0, 1

_RANGE = 4 * 2**20
"""Bytes of one request."""
_AHEAD = 4
"""Ranges of a file that are asked for or wait, beside the one that is digested."""
_FILES = 4
"""Files at the same time: together at most _FILES * (_AHEAD + 1) * _RANGE bytes, 84 MB."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Read every file of every committed checkpoint and compare its digest with the manifests.

    Torn checkpoints, which a killed worker leaves or a living one is writing, are told but are no
    damage, unless one is named by itself. Exit code: 0 if everything is good, 1 if anything is
    damaged, 2 if it could not be looked at.
    """

    url: Url
    """STORAGE/NAME of a run, or STORAGE/NAME/checkpoints/step-... of a checkpoint, any fsspec URL."""


State = Literal["good", "damaged", "torn", "gone"]


@dataclass(frozen=True)
class Verdict:
    """What was found of one checkpoint; `gone`: somebody removed it meanwhile, as retention does."""

    name: str
    """The checkpoint's, or run.json."""
    state: State
    reason: str = ""
    world: int = 0
    bytes: int = 0
    """Verified, or in storage if it was not read."""


@dataclass(frozen=True)
class VerifyReport:
    """What was found of a run, oldest first, or of the one checkpoint that was `asked` for."""

    url: str
    verdicts: tuple[Verdict, ...]
    asked: bool = False

    @property
    def code(self) -> int:
        """The exit code."""
        bad = {"damaged", "torn", "gone"} if self.asked else {"damaged"}
        return DAMAGED if any(verdict.state in bad for verdict in self.verdicts) else GOOD

    @property
    def line(self) -> str:
        """The result in one line."""
        if not self.verdicts:
            return f"{self.url} has no checkpoints yet"
        good = [verdict for verdict in self.verdicts if verdict.state == "good"]
        parts = [f"{len(good)} good ({size(sum(verdict.bytes for verdict in good))})"]
        for state in ("damaged", "torn", "gone"):
            number = sum(verdict.state == state for verdict in self.verdicts)
            parts += [f"{number} {state}"] if number or state == "damaged" else []
        return f"{self.url}: {', '.join(parts)}"

    def text(self) -> str:
        """For a terminal: a table, and the result as the last line."""
        rows = [("checkpoint", "world", "bytes", "result")]
        for v in self.verdicts:
            result = f"{v.state}: {v.reason}" if v.reason else v.state
            rows.append((v.name, str(v.world or "-"), size(v.bytes), result))
        return "\n".join([columns(rows), self.line]) if self.verdicts else self.line


def main(argv: Sequence[str]) -> int:
    """`raymat verify URL`; returns the exit code. Raises RaymatError if it could not look."""
    options = parse_options(Options, argv, "raymat verify")
    with ProgressBar("verify") as progress:
        report = verify(options.url, progress=progress)
    print(report.text())
    return report.code


def verify(
    url: str, *, progress: ProgressBar | None = None, options: Mapping[str, Any] | None = None
) -> VerifyReport:
    """Verify a run or a checkpoint. `options`: as for `Store.open`.

    Raises:
        StorageError: there is no such run or checkpoint, or the storage fails.
    """
    store, checkpoint = open_url(url, options)
    statuses = list_checkpoints(store, checkpoint)
    run, verdicts = _run_id(store)
    verdicts += reversed(check(store, statuses, run=run, progress=progress))
    return VerifyReport(store.url, tuple(verdicts), checkpoint is not None)


def check(
    store: Store,
    statuses: Sequence[Status],
    *,
    run: str | None = None,
    progress: ProgressBar | None = None,
) -> list[Verdict]:
    """A verdict on each of `statuses`, in their order. `run`: the id that the manifests must carry.

    Raises:
        StorageError: the storage fails.
    """
    with ExitStack() as stack:
        # After an interrupt or a failure nothing more is read: the ranges go first.
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
        faults: dict[str, str] = {}
        for (status, _), fault in zip(jobs, found, strict=True):
            if fault:
                faults.setdefault(str(status.id), fault)
    return [
        entries if isinstance(entries, Verdict) else _judge(store, status, entries, faults)
        for status, entries in zip(statuses, opened, strict=True)
    ]


def newest_good(
    store: Store,
    statuses: Sequence[Status],
    *,
    run: str | None = None,
    progress: ProgressBar | None = None,
) -> tuple[Status | None, dict[CheckpointId, str]]:
    """The newest of `statuses` (newest first) that verifies; and why newer committed ones do not.

    Raises:
        StorageError: the storage fails.
    """
    damaged: dict[CheckpointId, str] = {}
    for status in statuses:
        if status.state == "committed":
            (verdict,) = check(store, [status], run=run, progress=progress)
            if verdict.state == "good":
                return status, damaged
            damaged[status.id] = f"{verdict.state}: {verdict.reason}"
    return None, damaged


def _run_id(store: Store) -> tuple[str | None, list[Verdict]]:
    """The run's id, or None, and the verdict on a run.json that does not give one."""
    try:
        stored = read_run(store) or {}
    except StorageError as error:
        store.read(RUN_FILE)  # raises again if it is the storage that fails
        return None, [Verdict(RUN_FILE, "damaged", error.line)]
    return stored.get("run_id"), []


def _open(store: Store, status: Status, run: str | None) -> list[FileEntry] | Verdict:
    """The files that a checkpoint's manifests vouch for, or what is wrong with it already."""
    if status.state == "torn":
        # Looked at twice: it may be being written or pruned while it is listed.
        lost = _lost(status.files) and _lost(list_files(store, status.id))
        if lost:
            return Verdict(str(status.id), "damaged", lost, status.world, status.bytes)
        reason = why(status).removeprefix("torn: ")
        return Verdict(str(status.id), "torn", reason, status.world, status.bytes)
    try:
        manifests = read_manifests(store, status.id, status.files, run)
    except CheckpointError as error:
        return _damaged(store, status, error.line)
    return [entry for manifest in manifests for entry in manifest.files]


def _lost(files: Mapping[str, int]) -> str:
    """What must have been there, by a listing, and is not; "" if nothing is.

    A manifest is the last file that its rank writes and the first that is pruned: beside one, an
    absent file was lost.
    """
    for name in files:
        place = parse_manifest_name(name)
        for needed in (name, *share_names(*place)) if place else ():
            if not files.get(needed):
                return f"{needed} is {'empty' if needed in files else 'missing'}"
    return ""


def _check_file(
    store: Store, status: Status, entry: FileEntry, ranges: Executor, progress: ProgressBar | None
) -> str:
    """What is wrong with a file; "" if nothing is."""
    pieces = _pieces(store, f"{CHECKPOINTS}/{status.id}/{entry.name}", entry.size, ranges, progress)
    try:
        good = matches(entry.digest, pieces)
    except MissingFileError:
        return f"{entry.name} is missing or short"
    return "" if good else f"{entry.name} has another digest than its manifest"


def _pieces(
    store: Store, path: str, length: int, ranges: Executor, progress: ProgressBar | None
) -> Iterator[bytearray]:
    """A file in its order, a few ranges read ahead."""

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
    store: Store, status: Status, entries: Sequence[FileEntry], faults: Mapping[str, str]
) -> Verdict:
    fault = faults.get(str(status.id))
    if fault:
        return _damaged(store, status, fault)
    total = sum(entry.size for entry in entries)
    return Verdict(str(status.id), "good", "", status.world, total)


def _damaged(store: Store, status: Status, reason: str) -> Verdict:
    """Damaged, unless a running run or a `raymat prune` removed it while it was read."""
    name = str(status.id)
    manifests = [file for file in list_files(store, status.id) if parse_manifest_name(file)]
    if len(manifests) < status.world:
        return Verdict(name, "gone", "removed meanwhile")
    reason = reason.removeprefix(f"{name} is ").removeprefix("damaged: ")
    return Verdict(name, "damaged", reason, status.world, status.bytes)
