"""The run or checkpoint that a URL of a command names."""

from __future__ import annotations

import logging
from os.path import isfile, split
from pathlib import Path
from typing import Any

from raymat.checkpoint.catalog import Status, scan
from raymat.checkpoint.layout import split_run_url
from raymat.checkpoint.manifest import CheckpointId
from raymat.console import count
from raymat.errors import ConfigError, StorageError
from raymat.storage.backends import LocalBackend
from raymat.storage.store import Store
from raymat.train.observability.events import read_events_counted
from raymat.train.run.run_file import RUN_FILE

log = logging.getLogger(__name__)


def open_url(url: str) -> tuple[Store, CheckpointId | None]:
    """Open the run at `url`, or the run of the checkpoint there.

    Raises:
        StorageError: `url` names neither.
    """
    storage, name, checkpoint = split_run_url(url)
    store = Store.open(storage, name)
    if is_file(store):
        raise StorageError(
            f"{store.url} is a file: expected the URL of a run, --storage and --name joined by a slash"
        )
    return store, checkpoint


def is_file(store: Store) -> bool:
    """Return whether a file of this machine lies where the run's folder would be."""
    return isinstance(store.backend, LocalBackend) and isfile(store.root)


def open_run_url(url: str) -> Store:
    """Open the run at `url`.

    Raises:
        ConfigError: `url` names a checkpoint. StorageError: it names neither run nor checkpoint.
    """
    store, checkpoint = open_url(url)
    if checkpoint is not None:
        raise ConfigError(f"expected the URL of a run, got a checkpoint's: use {store.url}")
    return store


def read_run_events(store: Store) -> list[dict[str, Any]]:
    """Read the events of the run in `store`; lines that are left out are told. Raises StorageError if there are none."""
    events, damaged = read_events_counted(store)
    if damaged:
        log.warning("%s", left_out(damaged))
    if not events:
        raise StorageError(f"there is no run with events at {store.url}{meant_run(store)}")
    return events


def left_out(damaged: int) -> str:
    """Say that lines of a run's events cannot be read."""
    lines = count(damaged, "line")
    return f"{lines} of the run's events left out: damaged, or of another raymat"


def meant_run(store: Store) -> str:
    """Return the end of a message that there is no run in `store`: the run that may have been meant.

    It is the one before an `@` (which names weights, not runs), or one of that name in ./runs, where runs are by default.
    """
    folder, name = split(store.url)
    name, at, _ = name.partition("@")
    places = [Path(folder, name)] if at else []
    places += [Path("runs", name)] if folder == "." else []
    found = next((place for place in places if (place / RUN_FILE).is_file()), None)
    return f"; did you mean {found}?" if found else ""


def list_checkpoints(
    store: Store, checkpoint: CheckpointId | None = None, *, manifests: int = 0
) -> list[Status]:
    """List the run's checkpoints, or `checkpoint` alone, newest first; `manifests` as for `scan`.

    Raises:
        StorageError: there is no such run or checkpoint, or storage cannot be read.
    """
    found = scan(store, manifests=manifests)
    if checkpoint is not None:
        found = [status for status in found if status.id == checkpoint]
        if not found:
            raise StorageError(f"there is no checkpoint {checkpoint} in {store.url}")
    if not found and store.try_read(RUN_FILE) is None:
        raise StorageError(
            f"there is no run at {store.url}: expected the URL of a run, --storage and --name "
            f"joined by a slash{meant_run(store)}"
        )
    return found
