"""The start of an attempt: from the newest verified checkpoint, else from other weights or new ones."""

from __future__ import annotations

import time
from dataclasses import dataclass

from raymat.checkpoint.local_cache import LocalCache
from raymat.checkpoint.manifest import CheckpointId
from raymat.data.feed import Feed
from raymat.distributed.batchnorm_kernels import PLAIN
from raymat.distributed.collectives import Group
from raymat.distributed.kernel_trial import require_right
from raymat.model.matting import MattingBase, build
from raymat.model.pretrained import InitReport, load_matching
from raymat.storage.urls import redact
from raymat.train.loop.attempt import Attempt
from raymat.train.loop.interfaces import Host
from raymat.train.loop.reporter import Reporter
from raymat.train.loop.restore import Restored, restore
from raymat.train.loop.state import RunState
from raymat.train.loop.train_step import TrainStep
from raymat.train.observability.attempt_events import ArithmeticChanged
from raymat.train.observability.checkpoint_events import CheckpointRestored, CheckpointSkipped
from raymat.train.observability.training_events import AverageStarted, WeightsInitialized
from raymat.train.optim.forward import ForwardPass
from raymat.train.optim.lr_schedule import fix_cosine_end
from raymat.train.optim.mixed_precision import activation_dtype
from raymat.train.run.first_weights import FirstWeights
from raymat.train.run.selected_weights import Selected, named_source, read_weights
from raymat.train.run.weights_reference import parse_reference, pin


@dataclass(frozen=True)
class StartingPoint:
    """Where an attempt starts: the network with its optimiser, and what the run remembers."""

    step: TrainStep
    state: RunState
    checkpoint: CheckpointId | None
    """What they were read from; None if nothing is trained yet."""
    damaged: frozenset[CheckpointId]
    """Newer checkpoints that could not be used."""


def start_from_newest(
    attempt: Attempt, host: Host, reporter: Reporter, cache: LocalCache | None, feed: Feed
) -> StartingPoint:
    """Build the network and put the run's state into it. Called by all workers; raises on all of them.

    Writes the events `skip`, `restore`, `init` and `ema`; tells the loggers, the host and the feed where the run goes on.

    Raises:
        ConfigError, DataError: the run was begun with another configuration or dataset.
        WeightsError: --init cannot be used. CheckpointError, StorageError: no checkpoint can be read.
    """
    config = attempt.config
    attempt.record_activity("building the network")
    network = build(config.stage, config.model, config.data.seed)
    forward = ForwardPass.of(config, attempt.device)
    if forward.kernels is not PLAIN and attempt.group.world.size > 1:
        require_right(forward.kernels, attempt.device, activation_dtype(forward.precision))
    step = TrainStep(network, forward, attempt.group.world, config.optim)
    attempt.record_activity("looking for a checkpoint")
    restored, damaged = _restore(attempt, step, cache, feed)
    if restored.checkpoint is None:
        _initialise(attempt, step)
    state, schedule = restored.state, attempt.schedule
    state.rates = fix_cosine_end(config, schedule.total_examples, state.rates)
    state.judge(config, attempt.run.order.lineage, schedule.total_steps)
    # The loggers clear away what comes again before anything new can be logged.
    reporter.resumed(state.step, restored.checkpoint)
    host.restored(restored.checkpoint)
    return StartingPoint(step, state, restored.checkpoint, damaged)


def _restore(
    attempt: Attempt, step: TrainStep, cache: LocalCache | None, feed: Feed
) -> tuple[Restored, frozenset[CheckpointId]]:
    """Restore `step`; return what was restored, and which newer checkpoints are damaged."""
    began, damaged = time.monotonic(), set[CheckpointId]()

    def skipped(checkpoint: CheckpointId, reason: str) -> None:
        damaged.add(checkpoint)
        attempt.emit(
            CheckpointSkipped(checkpoint=str(checkpoint), step=checkpoint.step, reason=reason)
        )

    def found(at: int) -> None:
        attempt.record_activity("reading a checkpoint" if at else "taking the first weights")
        # Already now: the first batches are made while the checkpoint is read.
        feed.expect(attempt.schedule.stretches(at))

    restored = restore(attempt, step, skipped, cache, found)
    if restored.checkpoint is not None:
        at = restored.state.step
        attempt.emit(
            CheckpointRestored(
                attempt=attempt.number,
                checkpoint=str(restored.checkpoint),
                step=at,
                seconds=time.monotonic() - began,
                nearby_bytes=restored.nearby_bytes,
                storage_bytes=restored.storage_bytes,
            )
        )
        if step.ema is not None and not step.ema.updates:  # --ema-decay is new in this run
            summary = f"the average of the weights begins with those of step {at}"
            attempt.emit(AverageStarted(step=at, summary=summary))
    _tell_of_other_bits(attempt, restored)
    return restored, frozenset(damaged)


def _tell_of_other_bits(attempt: Attempt, restored: Restored) -> None:
    """Say what differs from the checkpoint's makers, and between the workers unless it did before."""
    now, before, at = attempt.arithmetic, restored.arithmetic, restored.state.step
    difference = None if before is None else now.difference(before)
    if difference is not None:
        attempt.emit(ArithmeticChanged(step=at, difference=difference))
    if now.mixture is not None and (before is None or difference is not None):
        attempt.emit(ArithmeticChanged(step=at, difference=now.mixture, mixed=True))


def _initialise(attempt: Attempt, step: TrainStep) -> None:
    step.share_weights()
    url = attempt.config.model.init
    if url is not None:
        report = initialise_from(step.network, url, attempt.group, attempt.run.first_weights)
        attempt.emit(WeightsInitialized(url=url, summary=report.summary))
    # Last: the average begins with the weights that training begins with.
    if step.ema is not None:
        step.ema.restart()


def initialise_from(
    network: MattingBase, url: str, group: Group, settled: FirstWeights | None = None
) -> InitReport:
    """Load the weights at `url`, or the `settled` ones, into `network`, the same on every worker.

    `url`: a file, or whatever `raymat.train.run.weights_reference` reads. Called by all workers; raises on all of them.

    Raises:
        WeightsError: nothing there fits, or not what was settled. StorageError: a run's checkpoint cannot be read.
    """
    url = url if settled is None else settled.url

    def put(selected: Selected, source: str) -> InitReport:
        if settled is not None:
            settled.require(selected.weights)
        return load_matching(network, selected.weights, source)

    if parse_reference(url).is_file:
        return group.on_all(lambda: put(read_weights(url), redact(url)))
    notes: list[str] = []
    mine: list[Selected] = []

    def choose() -> CheckpointId | None:
        mine.append(read_weights(url, on_skip=lambda _, why: notes.append(f"passed over: {why}")))
        return mine[0].checkpoint

    # Rank 0 chooses: meanwhile the run may commit a newer checkpoint, and all workers must read the same.
    checkpoint = group.on_lead(choose)
    assert checkpoint is not None

    def load() -> InitReport:
        selected = mine[0] if mine else read_weights(pin(url, checkpoint))
        source = "; ".join([named_source(redact(url), selected.checkpoint), *notes])
        return put(selected, source)

    return group.on_all(load)
