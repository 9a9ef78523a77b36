"""Extensions of a run: more steps than it was to have, or a dataset that has grown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raymat.checkpoint.catalog import Status, read_extra, require_committed
from raymat.checkpoint.state_dict import require_state
from raymat.config.fixed_options import DATASET, LENGTH
from raymat.config.run import RunConfig, from_dict, to_dict
from raymat.data.dataset.run_dataset import Grown, grow_dataset, source_of
from raymat.data.lineage import NO_LINEAGE, DatasetSpan, Lineage, Steps
from raymat.data.sample_order import Cursor
from raymat.errors import CheckpointError, NewerFormatError
from raymat.storage.store import Store
from raymat.train.observability.attempt_events import DatasetGrown, RunExtended
from raymat.train.observability.event import Event


@dataclass(frozen=True)
class RunPosition:
    """Where the newest checkpoint is: completed steps, examples consumed, and whether the run was to end there."""

    step: int = 0
    examples: int = 0
    ended: bool = False


@dataclass(frozen=True)
class RunChange:
    """What is new in a resumed run: a line for people, and an event unless nothing changed after all."""

    line: str
    event: Event | None = None


def total_examples(config: RunConfig, first_pairs: int, lineage: Lineage = NO_LINEAGE) -> int:
    """Return how many examples the run trains on: those of whole steps, or of virtual epochs.

    An epoch has `--epoch-examples`, by default `first_pairs`, as many as the run had pairs when it was begun.
    """
    length = config.length
    if length.steps is not None:
        return Steps(config.data.batch_size, lineage.ends).examples(length.steps)
    assert length.epochs is not None
    return max(1, round(length.epochs * (length.epoch_examples or first_pairs)))


def extend_run(
    config: RunConfig, store: Store, stored: dict[str, Any], statuses: Sequence[Status], grow: bool
) -> tuple[dict[str, Any], list[RunChange]]:
    """Return the run's `run.json` with the length of `config`, and what is new.

    Args:
        stored: its `run.json` so far.
        statuses: its checkpoints, newest first.
        grow: whether the dataset is listed again.

    Raises:
        ConfigError, DataError: files of the dataset are missing or changed. StorageError: the storage cannot be read or written.
    """
    lineage, changes = Lineage.from_dict(stored.get("past")), []
    before = source_of(config, store, stored["listing"]).open()
    pairs = lineage.first_pairs(before.pairs)
    at = read_position(store, statuses, stored["run_id"], pairs)
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
    changed = {"config": stored["config"] | kept, "listing": listing, "past": lineage.to_dict()}
    return stored | changed, changes


def read_position(
    store: Store, statuses: Sequence[Status], run_id: str, first_pairs: int
) -> RunPosition:
    """Read where the newest checkpoint of `statuses` (newest first) is from its manifests and its small file.

    Should a shard of it turn out to be damaged, workers take an older one, and an ended run is extended again.

    Raises:
        NewerFormatError: a newer raymat has written to the run. StorageError: the storage cannot be read.
    """
    for status in statuses:
        try:
            require_committed(store, status)
            return position_of(read_extra(store, status, run_id), first_pairs)
        except NewerFormatError:
            raise
        except CheckpointError:
            continue
    return RunPosition()


def position_of(extra: Mapping[str, Any], first_pairs: int) -> RunPosition:
    """Return the position of a checkpoint with this `extra`. Raises CheckpointError, DataError or ConfigError if it tells none."""
    require_state(extra, ("step", "cursor", "config"))
    used = Cursor.load_state_dict(extra["cursor"]).next_example
    lineage = Lineage.from_dict(extra.get("past"))
    total = total_examples(from_dict(extra["config"]), first_pairs, lineage)
    return RunPosition(int(extra["step"]), used, used >= total)


def longer(config: RunConfig, first_pairs: int, lineage: Lineage, at: RunPosition) -> Lineage:
    """Add the end that the run is at to `lineage`, if it had ended there and now is to go on."""
    if not at.ended or at.examples <= max(lineage.ends, default=0):
        return lineage
    ended = replace(lineage, ends=(*lineage.ends, at.examples))
    return ended if total_examples(config, first_pairs, ended) > at.examples else lineage


def with_more_data(
    lineage: Lineage, before: tuple[int, int, str], at: RunPosition, valid_changed: bool
) -> Lineage:
    """Add the present dataset to `lineage`, as one that has grown since; the grown one begins with the next pass.

    `before`: the present dataset's pairs, backgrounds and listing's digest.
    """
    pairs, backgrounds, listing = before
    begun = max(0, at.examples - lineage.start)
    end = lineage.start + -(-begun // pairs) * pairs
    return replace(
        lineage,
        spans=(*lineage.spans, DatasetSpan(end, pairs, backgrounds, listing)),
        valid_since=at.step if valid_changed else lineage.valid_since,
    )


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
