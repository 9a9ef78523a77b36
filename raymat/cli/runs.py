"""A run as the commands see it: its checkpoints, and what the newest one remembers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymat.checkpoint.catalog import Status, scan
from raymat.checkpoint.layout import split_run_url
from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import ConfigError, StorageError
from raymat.storage.store import Store
from raymat.train.run.run_file import RUN_FILE


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


def why(status: Status) -> str:
    """A status' reason without the checkpoint's own name: "torn: no manifest", "committed"."""
    return status.reason.removeprefix(f"{status.id} is ") or status.state
