"""A run that is made longer or given more data, as pure functions of its lineage and of its newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raymat.checkpoint.catalog import read_extra, scan
from raymat.checkpoint.state_dict import require_format
from raymat.config.run import RunConfig, from_dict
from raymat.data.lineage import NO_LINEAGE, DatasetSpan, Lineage, Steps
from raymat.data.sample_order import Cursor
from raymat.errors import CheckpointError
from raymat.storage.store import Store


@dataclass(frozen=True)
class RunPosition:
    """Where the newest checkpoint is: completed steps, examples consumed, and whether the run was to end there."""

    step: int = 0
    examples: int = 0
    ended: bool = False


def total_examples(config: RunConfig, first_pairs: int, lineage: Lineage = NO_LINEAGE) -> int:
    """How many examples the run trains on: whole steps, or virtual epochs of `--epoch-examples` (default: `first_pairs`, as
    many pairs as the run was begun with)."""
    length = config.length
    if length.steps is not None:
        return Steps(config.data.batch_size, lineage.ends).examples(length.steps)
    assert length.epochs is not None
    return max(1, round(length.epochs * (length.epoch_examples or first_pairs)))


def standing(store: Store, run_id: str, first_pairs: int) -> RunPosition:
    """Where the run's newest checkpoint stands, as far as its manifests and its small file tell.

    Should a shard of it turn out to be damaged, an older one is taken, and the run comes by here again.

    Raises:
        StorageError: the storage cannot be read.
    """
    for status in scan(store):
        if status.state == "committed":
            try:
                return standing_of(read_extra(store, status, run_id), first_pairs)
            except CheckpointError:
                continue
    return RunPosition()


def standing_of(extra: Mapping[str, Any], first_pairs: int) -> RunPosition:
    """Where a state with this `extra` stands."""
    require_format(extra)
    used = Cursor.load_state_dict(extra["cursor"]).next_example
    lineage = Lineage.from_dict(extra.get("past"))
    total = total_examples(from_dict(extra["config"]), first_pairs, lineage)
    return RunPosition(int(extra["step"]), used, used >= total)


def longer(config: RunConfig, first_pairs: int, lineage: Lineage, at: RunPosition) -> Lineage:
    """`lineage` with the end that the run is at, if it had ended there and now is to go on."""
    if not at.ended or at.examples <= max(lineage.ends, default=0):
        return lineage
    ended = replace(lineage, ends=(*lineage.ends, at.examples))
    return ended if total_examples(config, first_pairs, ended) > at.examples else lineage


def with_more_data(
    lineage: Lineage, before: tuple[int, int, str], at: RunPosition, valid_changed: bool
) -> Lineage:
    """`lineage` with the present dataset, `before` (pairs, backgrounds, listing's digest), as one that has grown since.

    The new one begins with the next pass.
    """
    pairs, backgrounds, listing = before
    begun = max(0, at.examples - lineage.start)
    end = lineage.start + -(-begun // pairs) * pairs
    return replace(
        lineage,
        spans=(*lineage.spans, DatasetSpan(end, pairs, backgrounds, listing)),
        valid_since=at.step if valid_changed else lineage.valid_since,
    )
