"""Catalog of a run's checkpoints: lists them, and reads the newest that verifies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from raymat.checkpoint.layout import CHECKPOINTS
from raymat.checkpoint.manifest import STATE, CheckpointId
from raymat.checkpoint.reader import (
    MAX_BYTES,
    read_checkpoint,
    read_manifests,
    read_state,
    world_of,
)
from raymat.checkpoint.snapshot import Snapshot
from raymat.errors import CheckpointError
from raymat.storage.store import FileInfo, Store


@dataclass(frozen=True)
class Status:
    """State of a checkpoint in a listing: committed, or torn and why.

    `modified`: Unix seconds, of its newest file. `files`: sizes by name.
    """

    id: CheckpointId
    state: Literal["committed", "torn"]
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
    the storage fails. Requests: one listing, and for each candidate its manifests and its bytes.
    """
    for status in scan(store) if statuses is None else statuses:
        try:
            if status.state == "torn":
                raise CheckpointError(status.reason)
            snapshot = read_checkpoint(
                store, status.id, run, files=status.files, max_bytes=max_bytes
            )
        except CheckpointError as error:
            on_skip(status.id, error.line)
            continue
        return status.id, snapshot
    return None


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
    except CheckpointError as error:
        return Status(checkpoint, "torn", error.line, 0, total, modified, files)
    return Status(checkpoint, "committed", "", world, total, modified, files)
