"""The opening of a run: what must be known before its first step, found out in one pass with one scan of its checkpoints.

First it is surveyed, which needs no cluster and finds nearly all that can be wrong; then it is recorded and can start.

A new run gets a `run.json` (configuration, versions, when it was made) and the listing of its dataset, both kept in
storage. A resumed run reads them back, so that it lists nothing, and is refused if its configuration would break the
promise. An extension (more steps, more data) is written there first: no worker trains by what the run does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raymat.checkpoint.catalog import Status, scan
from raymat.config.fixed_options import DATASET, refuse_changes
from raymat.config.run import RunConfig, from_dict, to_dict
from raymat.config.settled import FEW, with_pace, with_pace_of, with_recipe
from raymat.console import count
from raymat.data.batch import Geometry
from raymat.data.dataset.run_dataset import geometry_of, mend_listing, sample_order, source_of
from raymat.data.dataset.source import SourceSpec
from raymat.data.lineage import Lineage
from raymat.data.sample_order import SampleOrder
from raymat.errors import DataError
from raymat.storage.store import Store
from raymat.storage.urls import shown_urls
from raymat.train.run.extension import RunChange, extend_run, total_examples
from raymat.train.run.first_weights import (
    FirstWeights,
    first_weights_of,
    has_moved,
    settle_first_weights,
)
from raymat.train.run.lease.entries import name_after
from raymat.train.run.lease.tenure import Tenure, Undisputed
from raymat.train.run.move import follow_moves, moves
from raymat.train.run.run_file import describe_run, read_run, write_run
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
    first_weights: FirstWeights | None
    """Of --init; None without, and if an older version began the run and it is trained."""
    geometry: Geometry
    resumed: bool
    changes: tuple[RunChange, ...]
    """What is new since the run was last driven."""
    status: RunStatus
    """Where it stood when it was opened."""
    complete: bool
    """Whether nothing is left to do, by a checkpoint that verifies."""


@dataclass(frozen=True)
class Survey:
    """What there is to know of a run before it is opened: where it stands, what is new in it, its dataset."""

    config: RunConfig
    """A new run's may leave things to `auto`."""
    stored: dict[str, Any] | None
    """Its `run.json` so far."""
    run: dict[str, Any]
    """What that will be; a new run's with `config`."""
    changes: tuple[RunChange, ...]
    statuses: list[Status]
    """Its checkpoints, newest first."""
    source: SourceSpec
    order: SampleOrder

    @property
    def untrained(self) -> bool:
        """Whether there is no checkpoint to go on from: training begins with the weights of --init."""
        return not any(status.state == "committed" for status in self.statuses)

    @property
    def at_end(self) -> bool:
        """Whether a checkpoint says that all steps are taken; whether one that verifies does, the run's opening tells."""
        return any(
            status.state == "committed" and status.id.step >= self.order.total_steps
            for status in self.statuses
        )


def open_run(
    config: RunConfig,
    store: Store,
    *,
    resolve: Resolve = lambda config, begun: config,
    tenure: Tenure | None = None,
    survey: Survey | None = None,
) -> OpenedRun:
    """Open the run in `store`, or make it.

    Args:
        resolve: see `Resolve`.
        tenure: the lease that the caller holds. None: no other process opens the run meanwhile.
        survey: what `survey_run` has found, under the same lease. None: it is surveyed now.

    Raises:
        LeaseLostError: another driver has the run. StorageError: the storage cannot be read or written.
        What `survey_run` raises, if there is no `survey`.
    """
    found = survey or survey_run(config, store, resolve=resolve, tenure=tenure)
    config, run, order = found.config, found.run, found.order
    if found.stored is None:
        config = resolve(config, None)
        run = run | {"config": to_dict(config)}
    run = _record(store, run, found.stored, tenure)
    status = read_status(store, config, order, found.statuses)
    return OpenedRun(
        store=store,
        config=config,
        run_id=run["run_id"],
        source=found.source,
        listing_digest=run["listing"]["digest"],
        order=order,
        first_weights=first_weights_of(run),
        geometry=geometry_of(config),
        resumed=found.stored is not None,
        changes=found.changes,
        status=status,
        complete=is_complete(store, run["run_id"], status, config, order, found.statuses),
    )


def survey_run(
    config: RunConfig,
    store: Store,
    *,
    resolve: Resolve = lambda config, begun: config,
    tenure: Tenure | None = None,
) -> Survey:
    """Look at the run in `store`, and at its dataset. Of what is written here nothing says yet that it is the run's.

    Args:
        resolve: as of `open_run`; not called for a new run.
        tenure: as of `open_run`.

    Raises:
        ConfigError: a resumed run was asked to change what its promise rests on, or the validation set is too small.
        DataError: the dataset cannot be used. WeightsError: --init cannot. StorageError: the storage cannot be read or written.
    """
    grow = config.data.grow_dataset
    # A request for this start alone, no part of what the run is.
    config = replace(config, data=replace(config.data, grow_dataset=False))
    stored = read_run(store)
    begun = None if stored is None else from_dict(stored["config"])
    config = with_recipe(config, begun)
    if begun is not None:
        config = resolve(with_pace_of(begun, config), begun)
    extends = begun is not None and (grow or config.length != begun.length)
    if begun is not None:
        require_same_run(begun, config, stored or {}, store.url, grow=grow)
    if extends and tenure:  # before the scan: it decides where the extension begins
        tenure.wait_until_alone()
    statuses = scan(store)
    run, mended = stored or describe_run(config, store), _mended(config, store, stored)
    config, paced = _paced(config, store, run) if begun is None else (config, [])
    run, moved = follow_moves(begun, config, store, run) if begun and not grow else (run, [])
    run, changes = extend_run(config, store, run, statuses, grow) if extends else (run, [])
    source, order = data_of_run(config, store, run)
    survey = Survey(
        config, stored, run, (*mended, *moved, *changes, *paced), statuses, source, order
    )
    run, found = settle_first_weights(config, begun, store, run, survey.untrained)
    return replace(survey, run=run, changes=(*survey.changes, *found))


def require_same_run(
    begun: RunConfig, asked: RunConfig, run: Mapping[str, Any], url: str, *, grow: bool
) -> None:
    """Raise a ConfigError if `asked` cannot go on with the run at `url`, `begun` otherwise, whose `run.json` is `run`.

    Dataset and first weights may lie elsewhere: whether they are the same is not looked at. `grow`: the dataset may be another.
    """
    moved_dataset = DATASET if grow or moves(begun, asked) else ()
    moved_init = ("init",) if has_moved(begun, asked, run) else ()
    refuse_changes(begun, asked, url, but=(*moved_dataset, *moved_init))


def _paced(
    config: RunConfig, store: Store, run: dict[str, Any]
) -> tuple[RunConfig, list[RunChange]]:
    """Settle a new run's length and intervals, and say so where it has few pairs."""
    pairs = source_of(config, store, run["listing"]).open().pairs
    paced = with_pace(config, pairs)
    if paced.length.steps == config.length.steps:
        return paced, []
    line = (
        f"{count(pairs, 'pair')}, fewer than {FEW}: the run has {count(paced.length.steps or 0, 'step')}, as with {FEW}; "
        "--epochs or --steps set another length"
    )
    return paced, [RunChange(line)]


def _mended(config: RunConfig, store: Store, stored: dict[str, Any] | None) -> list[RunChange]:
    """Make again what is damaged and can be made again, and say so."""
    if stored is None or not mend_listing(config, store, stored["listing"]):
        return []
    return [RunChange("the dataset's listing was damaged: the dataset, unchanged, is listed again")]


def _record(
    store: Store, run: dict[str, Any], stored: dict[str, Any] | None, tenure: Tenure | None
) -> dict[str, Any]:
    """Write what the run is from now on: a driver also what did not change, which ends what those before it may still change."""
    if tenure is None and run == stored:
        return run
    return write_run(store, run, tenure or Undisputed(name_after(store, ())))


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
            f"no validation pairs in {shown_urls(config.data.dataset or '')}: add valid/, or use --valid-examples 0"
        )
    total = total_examples(config, lineage.first_pairs(opened.pairs), lineage)
    return source, sample_order(config, opened, total, lineage)
