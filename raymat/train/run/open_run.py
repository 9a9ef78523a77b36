"""The opening of a run: what must be known before its first step, found out in one pass with one scan of its checkpoints.

A new run gets a `run.json` (configuration, versions, when it was made) and the listing of its dataset, both kept in
storage. A resumed run reads them back, so that it lists nothing, and is refused if its configuration would break the
promise. An extension (more steps, more data) is written to `run.json` first: no worker trains by what that does not say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from raymat.checkpoint.catalog import scan
from raymat.config.fixed_options import DATASET, refuse_changes
from raymat.config.run import RunConfig, from_dict
from raymat.data.batch import Geometry
from raymat.data.dataset.run_dataset import geometry_of, sample_order, source_of
from raymat.data.dataset.source import SourceSpec
from raymat.data.lineage import Lineage
from raymat.data.sample_order import SampleOrder
from raymat.errors import DataError
from raymat.storage.store import Store
from raymat.storage.urls import redact
from raymat.train.run.extension import RunChange, extend_run, total_examples
from raymat.train.run.run_file import create_run, read_run
from raymat.train.run.run_status import RunStatus, is_complete, read_status

Resolve = Callable[[RunConfig, RunConfig | None], RunConfig]
"""Replaces what a configuration leaves to `auto`; also given the configuration that the run was begun with, if it was."""


@dataclass(frozen=True)
class OpenedRun:
    """A run that can start or go on; small and picklable."""

    store: Store
    config: RunConfig
    """With nothing left to `auto`."""
    run_id: str
    source: SourceSpec
    listing_digest: str
    order: SampleOrder
    geometry: Geometry
    resumed: bool
    changes: tuple[RunChange, ...]
    """What is new since the run was last driven."""
    status: RunStatus
    """Where it stood when it was opened."""
    complete: bool
    """Whether nothing is left to do, by a checkpoint that verifies."""


def open_run(
    config: RunConfig,
    store: Store,
    *,
    resolve: Resolve = lambda config, begun: config,
    wait_for_others: Callable[[], None] = lambda: None,
) -> OpenedRun:
    """Open the run in `store`, or make it.

    Args:
        resolve: see `Resolve`.
        wait_for_others: returns when nobody else commits anything to the run; called before the run is extended.

    Raises:
        ConfigError: a resumed run was asked to change what its promise rests on, or the validation set is too small.
            DataError: the dataset cannot be used. StorageError: the storage cannot be read or written.
    """
    grow = config.data.grow_dataset
    # A request for this start alone, no part of what the run is.
    config = replace(config, data=replace(config.data, grow_dataset=False))
    stored = read_run(store)
    begun = None if stored is None else from_dict(stored["config"])
    config = resolve(config, begun)
    extends = begun is not None and (grow or config.length != begun.length)
    if begun is not None:
        refuse_changes(begun, config, store.url, but=DATASET if grow else ())
    if extends:
        wait_for_others()  # before the scan: it decides where the extension begins
    statuses = scan(store)
    changes: list[RunChange] = []
    if stored is None:
        stored = create_run(config, store)
    elif extends:
        stored, changes = extend_run(config, store, stored, statuses, grow)
    source, order = data_of_run(config, store, stored)
    status = read_status(store, config, order, statuses)
    return OpenedRun(
        store=store,
        config=config,
        run_id=stored["run_id"],
        source=source,
        listing_digest=stored["listing"]["digest"],
        order=order,
        geometry=geometry_of(config),
        resumed=begun is not None,
        changes=tuple(changes),
        status=status,
        complete=is_complete(store, stored["run_id"], status, config, order, statuses),
    )


def data_of_run(
    config: RunConfig, store: Store, stored: dict[str, Any]
) -> tuple[SourceSpec, SampleOrder]:
    """Return the dataset, and the order in which it is trained on, of a run with `stored` as its `run.json`.

    Raises:
        DataError: `config` asks for validation examples, and there is nothing to make them of.
    """
    lineage = Lineage.from_dict(stored.get("past"))
    source = source_of(config, store, stored["listing"])
    opened = source.open()
    if config.log.valid_examples and not opened.valid_pairs:
        raise DataError(
            f"no validation pairs in {redact(config.data.dataset or '')}: add valid/, or use --valid-examples 0"
        )
    total = total_examples(config, lineage.first_pairs(opened.pairs), lineage)
    return source, sample_order(config, opened, total, lineage)
