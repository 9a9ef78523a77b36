"""Catalog of a run's checkpoints: lists them, and reads the newest that verifies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from raymat.checkpoint.layout import CHECKPOINTS, path_of
from raymat.checkpoint.manifest import (
    FORMATS,
    MAX_BYTES,
    MAX_STATE_BYTES,
    STATE,
    STATE_FORMAT,
    CheckpointId,
    Manifest,
    newer_format,
    parse_manifest_name,
)
from raymat.checkpoint.reader import (
    parallel,
    read_checkpoint,
    read_manifests,
    read_state,
    world_of,
)
from raymat.checkpoint.state_dict import FORMAT as TRAINING_FORMAT
from raymat.errors import CheckpointError, NewerFormatError
from raymat.storage.digest import matches
from raymat.storage.fields import parse_object
from raymat.storage.store import FileInfo, Store

if TYPE_CHECKING:
    from raymat.checkpoint.snapshot import Snapshot


@dataclass(frozen=True)
class Status:
    """State of a checkpoint in a listing: committed, torn and why, or of a format that only a newer raymat reads.

    `modified`: Unix seconds, of its newest file. `files`: sizes by name.
    """

    id: CheckpointId
    state: Literal["committed", "torn", "newer"]
    reason: str = ""
    world: int = 0
    bytes: int = 0
    modified: float = 0.0
    files: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def summary(self) -> str:
        """The state and its reason without the checkpoint's name: "committed", "torn: no manifest"."""
        return self.reason.removeprefix(f"{self.id} is ") or self.state


def scan(store: Store, *, manifests: int = 0) -> list[Status]:
    """List every checkpoint of the run, newest first, from one recursive listing.

    A rank writes its manifest last, so a checkpoint with every manifest and every shard counts as committed. The
    newest `manifests` of those are also checked against their manifests (one request for each rank), which finds
    wrong sizes and forged or damaged manifests. Only reading verifies the bytes: see `newest`.
    """
    folders: dict[CheckpointId, list[FileInfo]] = {}
    for info in store.list(CHECKPOINTS):
        folder, _, name = info.path.removeprefix(f"{CHECKPOINTS}/").partition("/")
        found = CheckpointId.try_parse(folder)
        if found is not None and name and "/" not in name:
            folders.setdefault(found, []).append(info)
    statuses: list[Status] = []
    for checkpoint in sorted(folders, reverse=True):
        read = sum(s.state == "committed" for s in statuses) < manifests
        statuses.append(_status(store, checkpoint, folders[checkpoint], read))
    return statuses


def newest(
    store: Store,
    run: str | None = None,
    on_skip: Callable[[CheckpointId, str], None] = lambda checkpoint, reason: None,
    *,
    max_bytes: int = MAX_BYTES,
    statuses: Sequence[Status] | None = None,
) -> tuple[CheckpointId, Snapshot] | None:
    """Read the newest committed checkpoint of which every digest is right; None if there is none.

    `run`: the run id that it must carry. `statuses`: of a scan; without, the run is scanned. `on_skip` is told of each
    newer one that was passed over, and why; nothing is deleted. Raises StorageError, rather than take an older one, when
    the storage fails, and NewerFormatError at one that a newer raymat wrote. Requests: one listing, and for each
    candidate its manifests and its bytes.
    """
    for status in scan(store) if statuses is None else statuses:
        try:
            if status.state == "torn":
                raise CheckpointError(status.reason)
            snapshot = read_checkpoint(
                store, status.id, run, files=status.files, max_bytes=max_bytes
            )
        except NewerFormatError:
            raise
        except CheckpointError as error:
            on_skip(status.id, error.line)
            continue
        return status.id, snapshot
    return None


def require_committed(store: Store, status: Status) -> None:
    """Raise unless a listed checkpoint may be read.

    Raises:
        NewerFormatError: a newer raymat wrote it, whatever its listing looks like. CheckpointError: it is torn.
    """
    if status.state == "torn":
        (status,) = mark_newer(store, [status])
    if status.state == "newer":
        raise NewerFormatError(
            f"{status.id} was {status.reason}: use the raymat that wrote it, or move the checkpoint away"
        )
    if status.state == "torn":
        raise CheckpointError(status.reason)


def mark_newer(store: Store, statuses: Iterable[Status]) -> list[Status]:
    """Return `statuses` with the state of those that a newer raymat wrote set to "newer".

    Reads each of their manifests and state files once. Whoever deletes checkpoints must ask this first: a listing alone
    may call a newer checkpoint torn. Raises StorageError if the storage fails.
    """
    statuses = list(statuses)
    formats = parallel(lambda status: _newer_format(store, status), statuses)
    return [
        replace(s, state="newer", reason=f"written by a newer raymat (format {number})")
        if number is not None
        else s
        for s, number in zip(statuses, formats, strict=True)
    ]


def _newer_format(store: Store, status: Status) -> int | None:
    """Return the newer format of a manifest, the state file or the training state inside it; None if all are known or damaged."""
    digests: dict[str, str] = {}
    for name in sorted(status.files):  # manifests first
        if parse_manifest_name(name):
            data = store.try_read(path_of(status.id, name)) or b""
            try:
                entries = Manifest.from_json(data).files
            except NewerFormatError:
                return newer_format(parse_object(data), FORMATS[-1])
            except CheckpointError:
                continue
            digests |= {entry.name: entry.digest for entry in entries}
    if not 0 < status.files.get(STATE, 0) <= MAX_STATE_BYTES:
        return None
    return _newer_state(store.try_read(path_of(status.id, STATE)) or b"", digests.get(STATE))


def _newer_state(data: bytes, expected: str | None) -> int | None:
    """Return the newer format of a state file; None if it is known, or damaged by the `expected` digest."""
    try:
        content = parse_object(data)
    except ValueError:
        return None
    if expected is not None and not matches(expected, [data]):
        return None
    found = newer_format(content, STATE_FORMAT)
    return newer_format(content.get("extra"), TRAINING_FORMAT) if found is None else found


def read_extra(store: Store, status: Status, run: str | None = None) -> dict[str, Any]:
    """Read what a checkpoint holds beside its tensors, verifying its manifests and one small file.

    `run`: the run id that it must carry.

    Raises:
        CheckpointError: it is torn, or that part of it is damaged. StorageError: the storage fails.
    """
    manifest = read_manifests(store, status.id, status.files, run)[0]
    return read_state(store, status.id, next(e for e in manifest.files if e.name == STATE))


def newest_extra(store: Store, statuses: Sequence[Status]) -> dict[str, Any]:
    """Read the newest state beside the tensors that verifies; {} if there is none.

    `statuses`: newest first.
    """
    for status in statuses:
        if status.state == "committed":
            try:
                return read_extra(store, status)
            except CheckpointError:
                continue
    return {}


def _status(store: Store, checkpoint: CheckpointId, infos: list[FileInfo], read: bool) -> Status:
    files = {info.path.rpartition("/")[2]: info.size for info in infos}
    total, modified = sum(files.values()), max(info.modified for info in infos)
    try:
        world = world_of(checkpoint, files)
        if read:
            read_manifests(store, checkpoint, files)
    except NewerFormatError:
        (status,) = mark_newer(store, [Status(checkpoint, "torn", "", 0, total, modified, files)])
        return status
    except CheckpointError as error:
        return Status(checkpoint, "torn", error.line, 0, total, modified, files)
    return Status(checkpoint, "committed", "", world, total, modified, files)
