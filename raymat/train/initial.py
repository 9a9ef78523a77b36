"""The weights that a new run starts from: `--init`, or none."""

from __future__ import annotations

from raymat.checkpoint.find import newest
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import read_checkpoint
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.store import Store, split_run_url
from raymat.errors import RaymatError, WeightsError
from raymat.model.matting import MattingBase
from raymat.model.weights import InitReport, load_init, load_matching
from raymat.train.group import Group
from raymat.train.state import MODEL

WEIGHT_FILES = (".pth", ".pt", ".ckpt", ".bin")
"""Endings by which a weights file is told from a run's folder."""


def initialise_from(network: MattingBase, url: str, group: Group) -> InitReport:
    """Load the weights at `url` (a file, a run or a checkpoint of raymat) into `network`, the same on every worker.

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
    if url.endswith(WEIGHT_FILES):
        return load_init(network, url)
    snapshot = _read_run(url, group)
    tensors = {n.removeprefix(MODEL): t for n, t in snapshot.tensors.items() if n.startswith(MODEL)}
    return load_matching(network, tensors, url)


def _read_run(url: str, group: Group) -> Snapshot:
    """The checkpoint that `url` names, or the newest of the run that it names: rank 0 says which one that is."""
    storage, name, checkpoint = split_run_url(url)
    store = Store.open(storage, name)
    if checkpoint is not None:
        return read_checkpoint(store, checkpoint)
    found: tuple[CheckpointId, Snapshot] | None = None
    outcome: CheckpointId | RaymatError | None = None
    if group.leads:
        try:
            found = newest(store)
            outcome = found[0] if found else None
        except RaymatError as error:
            outcome = error
    outcome = group.from_lead(outcome)
    if isinstance(outcome, RaymatError):
        raise outcome
    if outcome is None:
        raise WeightsError(
            f"--init {url} is neither a weights file ({', '.join(WEIGHT_FILES)}) nor a run with a checkpoint"
        )
    return found[1] if found else read_checkpoint(store, outcome)
