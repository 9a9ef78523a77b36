"""A run's dataset in another place than before: an identical copy is the same dataset."""

from __future__ import annotations

from typing import Any

from raymat.config.fixed_options import refuse_changes
from raymat.config.run import RunConfig, to_dict
from raymat.data.dataset.run_dataset import move_dataset
from raymat.errors import ConfigError, DataError
from raymat.storage.store import Store
from raymat.train.observability.attempt_events import DatasetMoved
from raymat.train.run.extension import RunChange

_FOLDERS = ("dataset", "backgrounds")


def moves(begun: RunConfig, asked: RunConfig) -> bool:
    """Whether `asked` looks for the files of a run's dataset elsewhere than `begun` did."""
    return _moved(begun, asked) != {}


def follow_moves(
    begun: RunConfig, asked: RunConfig, store: Store, run: dict[str, Any]
) -> tuple[dict[str, Any], list[RunChange]]:
    """Return the `run.json` of a run begun with `begun` with the dataset where `asked` looks for it, and what to say.

    Raises:
        ConfigError: what lies there is not the run's dataset; names the first difference. StorageError: the storage
            cannot be written.
    """
    moved = _moved(begun, asked)
    if not moved:
        return run, []
    try:
        listing, count = move_dataset(asked, store, run["listing"])
    except DataError as error:
        raise ConfigError(
            f"{_refusal(begun, asked, store)}; it is no copy of the run's dataset: {error}"
        ) from error
    event = DatasetMoved(files=count, places={name: places[1] for name, places in moved.items()})
    config = run["config"] | event.places
    return run | {"config": config, "listing": listing}, [RunChange(event.line, event)]


def _moved(begun: RunConfig, asked: RunConfig) -> dict[str, tuple[str, str]]:
    was, now = to_dict(begun), to_dict(asked)
    if None in (was["dataset"], now["dataset"]):
        return {}
    return {name: (was[name], now[name]) for name in _FOLDERS if was[name] != now[name]}


def _refusal(begun: RunConfig, asked: RunConfig, store: Store) -> str:
    try:
        refuse_changes(begun, asked, store.url)
    except ConfigError as error:
        return error.line
    raise AssertionError("nothing has changed")
