"""A run as the commands see it: its checkpoints, and what the newest one remembers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from raymat.checkpoint.digest import matches
from raymat.checkpoint.find import Status, scan
from raymat.checkpoint.manifest import STATE, CheckpointId
from raymat.checkpoint.shards import MAX_STATE_BYTES, read_manifests
from raymat.checkpoint.store import CHECKPOINTS, MissingFileError, Store, split_run_url
from raymat.errors import CheckpointError, ConfigError, StorageError
from raymat.train.prepare import RUN_FILE


def open_url(
    url: str, options: Mapping[str, Any] | None = None
) -> tuple[Store, CheckpointId | None]:
    """The run that `url` names or that holds the checkpoint that it names. `options`: as for `Store.open`.

    Raises:
        StorageError: no URL of a run or checkpoint.
    """
    storage, name, checkpoint = split_run_url(url)
    return Store.open(storage, name, options=options), checkpoint


def open_run(url: str, options: Mapping[str, Any] | None = None) -> Store:
    """The run that `url` names.

    Raises:
        ConfigError: it names a checkpoint. StorageError: it names neither.
    """
    store, checkpoint = open_url(url, options)
    if checkpoint is not None:
        raise ConfigError(f"expected the URL of a run, got a checkpoint's: use {store.url}")
    return store


def list_checkpoints(
    store: Store, checkpoint: CheckpointId | None = None, *, manifests: int = 0
) -> list[Status]:
    """The run's checkpoints, or the one of them that is asked for, newest first; see `scan`.

    Raises:
        StorageError: there is no such run or checkpoint, or the storage cannot be read.
    """
    found = scan(store, manifests=manifests)
    if checkpoint is not None:
        found = [status for status in found if status.id == checkpoint]
        if not found:
            raise StorageError(f"there is no checkpoint {checkpoint} in {store.url}")
    if not found and store.try_read(RUN_FILE) is None:
        raise StorageError(
            f"there is no run at {store.url}: expected the URL of a run, --storage and --name "
            "joined by a slash"
        )
    return found


def read_extra(store: Store, status: Status) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors: its manifests and one small file are read and verified.

    Raises:
        CheckpointError: it is torn, or that part of it is damaged. StorageError: the storage fails.
    """
    name = f"{CHECKPOINTS}/{status.id}/{STATE}"
    manifest = read_manifests(store, status.id, status.files)[0]
    entry = next(entry for entry in manifest.files if entry.name == STATE)
    if entry.size > MAX_STATE_BYTES:
        raise CheckpointError(f"{status.id} is refused: {STATE} has {entry.size} bytes")
    try:
        data = store.read(name)
    except MissingFileError as error:
        raise CheckpointError(f"{status.id} is torn: {STATE} is missing") from error
    if not matches(entry.digest, [data]):
        raise CheckpointError(
            f"{status.id} is damaged: {STATE} has another digest than its manifest"
        )
    try:
        extra = json.loads(data)["extra"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise CheckpointError(f"{status.id} is damaged: {STATE} is not a state's") from error
    if not isinstance(extra, dict):
        raise CheckpointError(f"{status.id} is damaged: {STATE} is not a state's")
    return extra


def newest_extra(store: Store, statuses: Sequence[Status]) -> dict[str, Any]:
    """What the newest checkpoint whose part beside the tensors verifies holds there; {} without any.

    `statuses`: newest first.
    """
    for status in statuses:
        if status.state == "committed":
            try:
                return read_extra(store, status)
            except CheckpointError:
                continue
    return {}


def valid_losses(extra: Mapping[str, Any]) -> dict[int, float]:
    """Each validation's loss by step, as far as it is finite."""
    validations = extra.get("validations")
    found = {}
    for validation in validations if isinstance(validations, list) else []:
        if not isinstance(validation, dict):
            continue
        step, loss = validation.get("step"), validation.get("loss")
        if type(step) is int and isinstance(loss, int | float) and math.isfinite(loss):
            found[step] = float(loss)
    return found


def best_step(losses: Mapping[int, float]) -> int | None:
    """The step with the lowest loss, the earliest of equals; None without any."""
    return min(losses, key=lambda step: (losses[step], step), default=None)


def why(status: Status) -> str:
    """A status' reason without the checkpoint's own name: "torn: no manifest", "committed"."""
    return status.reason.removeprefix(f"{status.id} is ") or status.state
