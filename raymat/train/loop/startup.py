"""What an attempt begins with: the newest verified checkpoint, else other weights or new ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import CheckpointId
from raymat.config.run import RunConfig
from raymat.distributed.collectives import Group
from raymat.errors import RaymatError
from raymat.model.matting import MattingBase, build
from raymat.model.pretrained import InitReport, load_init, load_matching
from raymat.storage.store import Store
from raymat.storage.urls import redact
from raymat.train.loop.restore import restore
from raymat.train.loop.schedule import Schedule
from raymat.train.loop.state import ResumeContract, RunState
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim.lr_schedule import settle_cosine
from raymat.train.run.selected_weights import Selected, read_weights
from raymat.train.run.weights_reference import parse_reference, pin


@dataclass(frozen=True)
class Startup:
    """The network with its optimiser, and where it stands."""

    step: TrainStep
    record: RunState
    checkpoint: CheckpointId | None
    """Of which they are; None if nothing is trained yet."""
    damaged: frozenset[CheckpointId]
    """Newer ones that could not be used."""


def begin(
    config: RunConfig,
    store: Store,
    group: Group,
    schedule: Schedule,
    device: torch.device,
    *,
    run_id: str,
    promise: ResumeContract,
    local_cache: LocalCache | None,
    beat: Callable[[str], None],
    tell: Callable[..., None],
) -> Startup:
    """Build the network and put the run's state into it. Called by all workers; raises on all of them.

    `beat` is told what is being done, `tell` the events `skip`, `restore`, `init` and `ema`.

    Raises:
        ConfigError, DataError: the run was begun with another configuration or dataset.
        WeightsError: --init cannot be used. CheckpointError, StorageError: no checkpoint can be read.
    """
    beat("building the network")
    step = _build(config, group, device)
    beat("reading a checkpoint")
    began = time.monotonic()
    damaged: set[CheckpointId] = set()

    def skipped(checkpoint: CheckpointId, reason: str) -> None:
        damaged.add(checkpoint)
        tell("skip", checkpoint=str(checkpoint), step=checkpoint.step, reason=reason)

    found = restore(
        step,
        store,
        group,
        run_id=run_id,
        promise=promise,
        schedule=schedule,
        on_skip=skipped,
        local_cache=local_cache,
    )
    record = found.record
    if found.checkpoint is not None:
        tell(
            "restore",
            checkpoint=str(found.checkpoint),
            step=record.step,
            seconds=time.monotonic() - began,
            nearby_bytes=found.nearby_bytes,
            storage_bytes=found.storage_bytes,
        )
        _tell_average(step, record, tell)
    else:
        _initialise(step, config.model.init, group, tell)
    record.rates = settle_cosine(config, schedule.total_examples, record.rates)
    return Startup(step, record, found.checkpoint, frozenset(damaged))


def _build(config: RunConfig, group: Group, device: torch.device) -> TrainStep:
    assert config.optim.precision is not None
    return TrainStep(
        build(config.stage, config.model, config.data.seed),
        stage=config.stage,
        precision=config.optim.precision,
        seed=config.data.seed,
        resolution=config.data.resolution,
        world=group.world,
        device=device,
        optim=config.optim,
    )


def _initialise(step: TrainStep, url: str | None, group: Group, tell: Callable[..., None]) -> None:
    step.share_weights()
    if url is not None:
        report = initialise_from(step.network, url, group)
        tell("init", url=url, summary=report.summary)
    if step.ema is not None:
        step.ema.restart()


def _tell_average(step: TrainStep, record: RunState, tell: Callable[..., None]) -> None:
    """A run that is given --ema-decay later has no average from before."""
    if step.ema is not None and not step.ema.updates:
        summary = f"the average of the weights begins with those of step {record.step}"
        tell("ema", step=record.step, summary=summary)


def initialise_from(network: MattingBase, url: str, group: Group) -> InitReport:
    """Load the weights at `url` (a file, or whatever `raymat.train.run.weights_reference` reads) into `network`, the same on every
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
    if parse_reference(url).is_file:
        return load_init(network, url)
    selected, notes = _read_run(url, group)
    source = "; ".join([f"{redact(url)} ({selected.checkpoint})", *notes])
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
