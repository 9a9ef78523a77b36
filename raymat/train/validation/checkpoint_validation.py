"""Validation of a committed checkpoint in a process of its own, which leaves the result in storage.

The result is a small object in the run's storage, `validations/step-000001200-a003.json`, named like the checkpoint:
the workers find it there, also after a restart of the workers or of the driver. It is a function of its checkpoint, so
it does not matter if it is written twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from raymat.checkpoint.reader import read_checkpoint
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.state_dict import EMA, MODEL, below, copy_same, require_state
from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch, Replacement
from raymat.data.feed import LocalFeed
from raymat.distributed.collectives import Group
from raymat.distributed.world import World
from raymat.model.matting import build
from raymat.train.optim.forward import ForwardPass
from raymat.train.validation.evaluator import Evaluator, singles, validate
from raymat.train.validation.interface import Job
from raymat.train.validation.result import ResultFolder, StoredResult


def validate_checkpoint(
    job: Job,
    device: torch.device,
    sign_of_life: Callable[[], None] = lambda: None,
) -> StoredResult:
    """Validate a checkpoint in this process alone, and leave the result in storage.

    `sign_of_life` is called at once, and then before each example. Sets this process's number of threads, as training does.

    Raises:
        CheckpointError: it is torn or damaged. StorageError: storage cannot be read or written. DataError: the
            validation set cannot be read.
    """
    began, config = time.monotonic(), job.config
    sign_of_life()
    torch.set_num_threads(config.workers.threads)
    snapshot = read_checkpoint(job.store, job.checkpoint, job.run_id)
    evaluators = evaluators_of(snapshot, config, device)
    world = World()
    feed = _SingleFeed(job.source.open(), job.order, job.geometry, world)
    replaced: list[Replacement] = []

    def see(batch: MicroBatch) -> None:
        replaced.extend(batch.replaced)

    found = validate(evaluators, feed, Group(world, device), see, sign_of_life)
    result = StoredResult(found, "beside", time.monotonic() - began, tuple(replaced))
    ResultFolder(job.store, job.run_id).write(job.checkpoint, result)
    return result


class _SingleFeed(LocalFeed):
    """A feed whose validation batches have one example each: a sign of life comes before each batch."""

    def valid(self) -> Iterator[MicroBatch]:
        for batch in super().valid():
            yield from singles(batch)


def evaluators_of(
    snapshot: Snapshot, config: RunConfig, device: torch.device
) -> dict[str, Evaluator]:
    """Return evaluators of the weights in a checkpoint (""), and, where the run keeps one, of their average ("ema_").

    Raises:
        CheckpointError: it is not the state of such a network.
    """
    require_state(snapshot.extra, ("channels_last",))
    weights = {"": below(MODEL, snapshot.tensors)}
    if config.optim.ema_decay is not None:
        weights["ema_"] = below(EMA, snapshot.tensors) or weights[""]
    forward = ForwardPass.of(config, device, bool(snapshot.extra["channels_last"]))
    found = {}
    for prefix, each in weights.items():
        network = forward.place(build(config.stage, config.model, config.data.seed))
        copy_same(network.state_dict(), each, "model")
        found[prefix] = Evaluator(network, forward, config.log.metrics)
    return found
