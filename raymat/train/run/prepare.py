"""What must be settled before a run's first step: who it is, what it reads, in which order.

A new run gets a `run.json` (configuration, versions, when it was made) and the listing of its
dataset, both kept in storage. A resumed run reads them back, so that it lists nothing, and is
refused if its configuration would break the promise. Where it is made longer or given more data, that
is first written down there: nobody trains by what `run.json` does not say.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from raymat.config.fixed_options import DATASET, LENGTH, refuse_changes
from raymat.config.run import RunConfig, from_dict, to_dict
from raymat.data.batch import Geometry
from raymat.data.dataset.run_dataset import Grown, grow_dataset, source_of
from raymat.data.dataset.source import SourceSpec
from raymat.data.lineage import NO_LINEAGE, Lineage
from raymat.data.sample_order import SampleOrder
from raymat.errors import DataError
from raymat.storage.store import Store
from raymat.storage.urls import redact
from raymat.train.observability.attempt_events import DatasetGrown, RunExtended
from raymat.train.observability.event import Event
from raymat.train.run.extension import RunPosition, longer, standing, total_examples, with_more_data
from raymat.train.run.run_file import RUN_FILE, RUN_FORMATS, create_run, read_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunChange:
    """What is new in a resumed run: a line for people, and an event unless nothing changed after all."""

    line: str
    event: Event | None = None


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start or go on."""

    config: RunConfig
    run_id: str
    source: SourceSpec
    listing_digest: str
    order: SampleOrder
    geometry: Geometry
    resumed: bool
    changes: tuple[RunChange, ...] = ()
    """What is new since the run was last driven."""


def prepare(
    config: RunConfig, store: Store, settle: Callable[[], None] = lambda: None
) -> PreparedRun:
    """Open the run in `store`, or make it.

    Args:
        config: the run's configuration with `workers.device` and `optim.precision` settled.
        store: the run's folder.
        settle: returns when nobody else commits anything to the run; called before it is made
            longer or given more data.

    Raises:
        ConfigError: a resumed run was asked to change what its promise rests on, or the validation
            set is too small. DataError: the dataset cannot be used. StorageError: the storage
            cannot be read or written.
    """
    grow = config.data.grow_dataset
    # A wish for this once, no part of what the run is.
    config = replace(config, data=replace(config.data, grow_dataset=False))
    stored = read_run(store)
    changes: list[RunChange] = []
    resumed = stored is not None
    if stored is None:
        stored = create_run(config, store)
    else:
        begun = from_dict(stored["config"])
        refuse_changes(begun, config, store.url, but=DATASET if grow else ())
        if grow or config.length != begun.length:
            settle()
            stored, changes = _continue(config, store, stored, grow)
            store.write(RUN_FILE, json.dumps(stored, indent=2).encode())
    return _prepared(config, store, stored, resumed, changes)


def _prepared(
    config: RunConfig, store: Store, stored: dict[str, Any], resumed: bool, changes: list[RunChange]
) -> PreparedRun:
    lineage = Lineage.from_dict(stored.get("past"))
    source = source_of(config, store, stored["listing"])
    opened = source.open()
    if config.log.valid_examples and not opened.valid_pairs:
        raise DataError(
            f"no validation pairs in {redact(config.data.dataset or '')}: add valid/, or use --valid-examples 0"
        )
    order = SampleOrder(
        seed=config.data.seed,
        pairs=opened.pairs,
        backgrounds=opened.backgrounds,
        batch_size=config.data.batch_size,
        crop=config.data.crop,
        total_examples=total_examples(config, lineage.first_pairs(opened.pairs), lineage),
        valid_pairs=opened.valid_pairs,
        valid_backgrounds=opened.valid_backgrounds,
        valid_examples=min(config.log.valid_examples, opened.valid_pairs),
        lineage=lineage,
        accumulate=config.optim.accumulate,
    )
    geometry = Geometry(
        stage=config.stage,
        resolution=config.data.resolution,
        scaled_decode=config.data.scaled_decode,
    )
    digest = stored["listing"]["digest"]
    return PreparedRun(
        config, stored["run_id"], source, digest, order, geometry, resumed, tuple(changes)
    )


def _continue(
    config: RunConfig, store: Store, stored: dict[str, Any], grow: bool
) -> tuple[dict[str, Any], list[RunChange]]:
    """The run's `run.json` with another length, and the dataset looked at again if `grow`; and what that changes."""
    lineage, changes = Lineage.from_dict(stored.get("past")), []
    before = source_of(config, store, stored["listing"]).open()
    pairs = lineage.first_pairs(before.pairs)
    at = standing(store, stored["run_id"], pairs)
    if (continued := longer(config, pairs, lineage, at)) != lineage:
        lineage = continued
        extended = RunExtended(step=at.step, examples=at.examples)
        changes.append(RunChange(extended.line, extended))
    listing = stored["listing"]
    if grow:
        found = grow_dataset(config, store, listing)
        if found.listing["digest"] == listing["digest"]:
            changes.append(RunChange("nothing was added to the dataset"))
        else:
            was = (before.pairs, before.backgrounds, str(listing["digest"]))
            lineage = with_more_data(lineage, was, at, found.valid_changed)
            changes.append(_growth(lineage, at, found))
        listing = found.listing
    now = to_dict(config)
    kept = {name: now[name] for name in (*DATASET, *LENGTH)}
    return stored | {
        "format": RUN_FORMATS[lineage != NO_LINEAGE],
        "config": stored["config"] | kept,
        "listing": listing,
        "past": lineage.to_dict(),
    }, changes


def _growth(lineage: Lineage, at: RunPosition, found: Grown) -> RunChange:
    line = f"the dataset has grown: {', '.join(map(str, found.added))}; from example {lineage.start} on"
    if found.valid_changed:
        line += f"; validations after step {at.step} cannot be compared with those before"
    event = DatasetGrown(
        step=at.step,
        examples=at.examples,
        from_example=lineage.start,
        added={added.kind: added.count for added in found.added},
        listing=found.listing["digest"],
        valid_since=lineage.valid_since,
    )
    return RunChange(line, event)
