"""Validation of a committed checkpoint, by whoever has it, and the small object that keeps its result.

The object lies in the run's storage, `validations/step-000001200-a003.json`, named like the checkpoint: whoever goes
on with the run finds it there, after a restart of the workers or of the driver. A result is a function of its
checkpoint, so it does not matter if it is written twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from raymat.checkpoint.reader import read_checkpoint
from raymat.checkpoint.state_dict import EMA, MODEL, below, copy_same, require_format
from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch, Replacement
from raymat.data.feed import LocalFeed
from raymat.distributed.collectives import Group
from raymat.distributed.world import World
from raymat.model.matting import build
from raymat.storage.store import Store
from raymat.train.optim.mixed_precision import parameter_dtype
from raymat.train.validation.evaluator import Evaluator, singles, validate
from raymat.train.validation.interface import Job
from raymat.train.validation.result import StoredResult, write_result


def validate_checkpoint(
    job: Job,
    device: torch.device,
    sign: Callable[[], None] = lambda: None,
) -> StoredResult:
    """Validate a checkpoint in this process alone, and leave the result in storage.

    `sign` is called at once, and then before each example. Sets this process's number of threads, as training does.

    Raises:
        CheckpointError: it is torn or damaged. StorageError: storage cannot be read or written. DataError: the
            validation set cannot be read.
    """
    began, config = time.monotonic(), job.config
    sign()
    torch.set_num_threads(config.workers.threads)
    store = Store.open(config.storage, config.name)
    snapshot = read_checkpoint(store, job.checkpoint, job.run_id)
    examiners = evaluators_of(snapshot.tensors, snapshot.extra, config, device)
    world = World()
    feed = _SingleFeed(job.source.open(), job.order, job.geometry, world)
    replaced: list[Replacement] = []

    def see(batch: MicroBatch) -> None:
        replaced.extend(batch.replaced)

    found = validate(examiners, feed, Group(world, device), see, sign)
    result = StoredResult(found, "beside", time.monotonic() - began, tuple(replaced))
    write_result(store, job.checkpoint, result)
    return result


class _SingleFeed(LocalFeed):
    """Whose validation batches have one example each."""

    def valid(self) -> Iterator[MicroBatch]:
        for batch in super().valid():
            yield from singles(batch)


def evaluators_of(
    tensors: Mapping[str, Tensor],
    extra: Mapping[str, Any],
    config: RunConfig,
    device: torch.device,
) -> dict[str, Evaluator]:
    """What measures examples by the weights of a checkpoint (""), and, where the run keeps one, by their average
    ("ema_").

    Raises:
        CheckpointError: it is not the state of such a network.
    """
    require_format(extra)
    weights = {"": below(MODEL, tensors)}
    if config.optim.ema_decay is not None:
        weights["ema_"] = below(EMA, tensors) or weights[""]
    return {prefix: _examiner(each, extra, config, device) for prefix, each in weights.items()}


def _examiner(
    weights: Mapping[str, Tensor], extra: Mapping[str, Any], config: RunConfig, device: torch.device
) -> Evaluator:
    precision = config.optim.precision
    assert precision is not None
    channels_last = bool(extra["channels_last"])
    network = build(config.stage, config.model, config.data.seed)
    network.to(device=device, dtype=parameter_dtype(precision))
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    copy_same(network.state_dict(), weights, "model")
    return Evaluator(
        network,
        stage=config.stage,
        precision=precision,
        seed=config.data.seed,
        resolution=config.data.resolution,
        device=device,
        channels_last=channels_last,
        metrics=config.log.metrics,
    )
