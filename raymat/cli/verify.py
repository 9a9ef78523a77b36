"""`raymat verify`: read every byte that a run has committed, and compare every digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raymat.checkpoint.catalog import Status, mark_newer
from raymat.checkpoint.integrity import Verdict, missing_manifest, verify_checkpoints
from raymat.checkpoint.manifest import CheckpointId
from raymat.config.command_line import parse_options
from raymat.config.options import Url
from raymat.console import ProgressBar, columns, size
from raymat.errors import NewerFormatError, StorageError
from raymat.storage.store import Store
from raymat.train.observability.deletions import CommitRecord
from raymat.train.observability.events import read_events
from raymat.train.run.run_file import RUN_FILE, check_run_file, read_run_id
from raymat.train.run.run_url import list_checkpoints, open_url

GOOD, DAMAGED, UNREADABLE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """Read every file of every committed checkpoint and compare its digest with the manifests.

    Torn checkpoints, left by a killed worker or still being written, are listed but are no damage unless named by
    themselves, or if the run's events say that they were committed, and not that they were deleted. Exit code: 0 if
    everything is good, 1 if anything is damaged, 2 if it could not be read, or if a newer raymat wrote it.
    """

    url: Url
    """STORAGE/NAME of a run, or STORAGE/NAME/checkpoints/step-... of a checkpoint, any fsspec URL."""


@dataclass(frozen=True)
class VerifyReport:
    """Verdicts on a run's checkpoints, oldest first, or on the one that the URL named."""

    url: str
    verdicts: tuple[Verdict, ...]
    single: bool = False
    """Whether the URL named a checkpoint."""

    @property
    def code(self) -> int:
        """The exit code."""
        bad = {"damaged", "torn", "gone"} if self.single else {"damaged"}
        states = {verdict.state for verdict in self.verdicts}
        if states & bad:
            return DAMAGED
        return UNREADABLE if "newer" in states else GOOD

    @property
    def line(self) -> str:
        """The result in one line."""
        if not self.verdicts:
            return f"{self.url} has no checkpoints yet"
        good = [verdict for verdict in self.verdicts if verdict.state == "good"]
        parts = [f"{len(good)} good ({size(sum(verdict.bytes for verdict in good))})"]
        for state in ("damaged", "torn", "gone", "newer"):
            number = sum(verdict.state == state for verdict in self.verdicts)
            parts += [f"{number} {state}"] if number or state == "damaged" else []
        return f"{self.url}: {', '.join(parts)}"

    def text(self) -> str:
        """Format a table for a terminal, with the result as the last line."""
        rows = [("checkpoint", "world", "bytes", "result")]
        for v in self.verdicts:
            stated = "" if v.state == "newer" else v.state
            result = ": ".join(filter(None, (stated, v.reason)))
            rows.append((v.name, str(v.world or "-"), size(v.bytes), result))
        return "\n".join([columns(rows), self.line]) if self.verdicts else self.line


def main(argv: Sequence[str]) -> int:
    """Run `raymat verify URL` and return the exit code. Raises RaymatError if the run cannot be read."""
    options = parse_options(Options, argv, "raymat verify")
    with ProgressBar("verify") as progress:
        report = verify(options.url, progress=progress)
    print(report.text())
    return report.code


def verify(url: str, progress: ProgressBar | None = None) -> VerifyReport:
    """Verify a run or a checkpoint.

    Raises:
        StorageError: there is no such run or checkpoint, or the storage fails.
    """
    store, checkpoint = open_url(url)
    # Before the listing: what the record calls committed was there.
    record = CommitRecord.of(read_events(store))
    statuses = mark_newer(store, list_checkpoints(store, checkpoint))
    run, verdicts = _run_id(store)
    found = verify_checkpoints(store, statuses, run=run, progress=progress)
    if checkpoint is None:
        there = {status.id for status in statuses}
        gone = [c for c in (record.last,) if c is not None and c not in there]
        statuses = [*map(_gone, gone), *statuses]
        found = [*(Verdict(str(c), "torn", "it is missing") for c in gone), *found]
    verdicts += reversed(_judge_torn(store, record, statuses, found))
    return VerifyReport(store.url, tuple(verdicts), checkpoint is not None)


def _gone(checkpoint: CheckpointId) -> Status:
    return Status(checkpoint, "torn", "it is missing")


def _judge_torn(
    store: Store, record: CommitRecord, statuses: Sequence[Status], found: Sequence[Verdict]
) -> list[Verdict]:
    """Call those torn ones damaged that were committed and not deleted, and those torn that a deletion has left."""
    if any(
        v.state == "torn" and record.proves_damage(s.id)
        for s, v in zip(statuses, found, strict=True)
    ):
        record = CommitRecord.of(read_events(store))  # it may have been deleted since
    judged = []
    for status, verdict in zip(statuses, found, strict=True):
        if verdict.state == "torn" and record.proves_damage(status.id):
            lost = missing_manifest(status.files) or verdict.reason
            verdict = replace(verdict, state="damaged", reason=f"{lost}, though it was committed")
        elif status.state == "torn" and status.id in record.deleted:
            verdict = replace(verdict, state="torn", reason="deleted, but for some files")
        judged.append(verdict)
    return judged


def _run_id(store: Store) -> tuple[str | None, list[Verdict]]:
    """Read the run's id, or None, and the verdict on a run.json that gives none."""
    try:
        run_id = read_run_id(store)
    except NewerFormatError as error:
        return None, [Verdict(RUN_FILE, "newer", f"written by a newer raymat: {error.line}")]
    except StorageError as error:
        store.read(RUN_FILE)  # raises again if it is the storage that fails
        return None, [Verdict(RUN_FILE, "damaged", error.line)]
    fault = check_run_file(store)
    return run_id, [Verdict(RUN_FILE, "damaged", fault)] if fault else []
