"""The weights that a new run starts from: `--init`, or none."""

from __future__ import annotations

from raymat.checkpoint.manifest import CheckpointId
from raymat.errors import RaymatError
from raymat.model.matting import MattingBase
from raymat.model.weights import InitReport, load_init, load_matching, shown
from raymat.train.group import Group
from raymat.train.selector import WEIGHT_FILES, Selected, parse, pin, read_weights

__all__ = ["WEIGHT_FILES", "initialise_from"]


def initialise_from(network: MattingBase, url: str, group: Group) -> InitReport:
    """Load the weights at `url` (a file, or whatever `raymat.train.selector` reads) into `network`, the same on every
    worker.

    Called by all workers; raises on all of them.

    Raises:
        WeightsError: nothing there fits. StorageError: a run's checkpoint cannot be read.
    """
    report, error = None, None
    try:
        report = _load(network, url, group)
    except RaymatError as found:
        error = found
    group.raise_together(error)
    assert report is not None
    return report


def _load(network: MattingBase, url: str, group: Group) -> InitReport:
    if parse(url).is_file:
        return load_init(network, url)
    selected, notes = _read_run(url, group)
    source = "; ".join([f"{shown(url)} ({selected.checkpoint})", *notes])
    return load_matching(network, selected.weights, source)


def _read_run(url: str, group: Group) -> tuple[Selected, list[str]]:
    """The weights of the checkpoint that rank 0 chooses, and on rank 0 what it passed over."""
    notes: list[str] = []
    mine: Selected | None = None
    outcome: CheckpointId | RaymatError | None = None
    if group.leads:
        try:
            mine = read_weights(url, on_skip=lambda _, why: notes.append(f"passed over: {why}"))
            outcome = mine.checkpoint
        except RaymatError as error:
            outcome = error
    outcome = group.from_lead(outcome)
    if isinstance(outcome, RaymatError):
        raise outcome
    assert outcome is not None
    return mine or read_weights(pin(url, outcome)), notes
