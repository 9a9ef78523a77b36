"""Tiny training runs in real worker processes, without Ray."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from raymat.checkpoint.catalog import scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import read_checkpoint
from raymat.checkpoint.snapshot import Snapshot
from raymat.config.run import RunConfig, build
from raymat.config.settled import with_recipe
from raymat.data.batch import Geometry, MicroBatch
from raymat.data.dataset.source import SourceSpec
from raymat.data.feed import LocalFeed, Stretch
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World
from raymat.storage.store import Store
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.loop.trainer import Outcome, run
from raymat.train.run.first_weights import FirstWeights
from raymat.train.run.open_run import OpenedRun, open_run
from raymat.train.validation.interface import Job, Validator
from tests.support.workers import in_workers

PAIRS = 20
TINY: dict[str, dict[str, Any]] = {
    "base": {"resolution": 32, "crop": "16:32", "batch_size": 4},
    "refine": {"resolution": 64, "crop": "32:64", "batch_size": 4, "refine_sample_pixels": 400},
}


def tiny(storage: Any, name: str, stage: Any = "base", **options: Any) -> RunConfig:
    """A run of 8 steps that commits every 2, on procedural pairs with mobilenetv2, on the CPU."""
    defaults = {
        "synthetic": PAIRS,
        "backbone": "mobilenetv2",
        "storage": str(storage),
        "name": name,
        "device": "cpu",
        "checkpoint_interval": 2,
        "valid_interval": 4,
        "valid_examples": 3,
        "log_loss_interval": 1,
        "log_images_interval": 4,
        "epoch_examples": 10**6,
        "keep": 100,
    }
    length = {} if "epochs" in options else {"steps": 8}
    return build(stage, defaults | TINY[stage] | length | options)


def order_of(config: RunConfig) -> SampleOrder:
    steps, epochs = config.length.steps, config.length.epochs
    epoch = config.length.epoch_examples or PAIRS
    total = steps * config.data.batch_size if steps else round((epochs or 0) * epoch)
    return SampleOrder(
        seed=config.data.seed,
        pairs=PAIRS,
        backgrounds=PAIRS,
        batch_size=config.data.batch_size,
        crop=config.data.crop,
        total_examples=total,
        valid_pairs=config.log.valid_examples,
        valid_backgrounds=config.log.valid_examples,
        valid_examples=config.log.valid_examples,
        accumulate=config.optim.accumulate,
    )


def source_of(config: RunConfig) -> SourceSpec:
    return SourceSpec.synthetic(
        count=PAIRS,
        seed=config.data.seed,
        size=config.data.resolution,
        valid_count=config.log.valid_examples,
    )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that nobody had to prepare."""

    config: RunConfig
    run_id: str
    listing_digest: str
    order: SampleOrder
    first_weights: FirstWeights | None = None


class Feed:
    """LocalFeed, which can kill this process when it is asked for a step.

    A `patient` one holds each step back until the checkpoint that was due before it is committed, up to `patient_to`: no
    save is left out.
    """

    def __init__(
        self, config: RunConfig, world: World, kill: Mapping[int, int], patient: bool = False
    ) -> None:
        source = source_of(config)
        geometry = Geometry(config.stage, config.data.resolution)
        self._feed = LocalFeed(source.open(), order_of(config), geometry, world)
        self._kill_at = kill.get(world.rank)
        self.interval = (config.checkpoint.checkpoint_interval.steps or 0) if patient else 0
        self.patient_to = 10**9
        self._store = store_of(config)

    def expect(self, stretches: Iterable[Stretch]) -> None:
        self._feed.expect(stretches)

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in self._feed.train(first_step, end_step):
            if batch.step == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            due = self.interval and 0 < batch.step <= self.patient_to
            if due and batch.step % self.interval == 0:
                self._wait_for(batch.step)
            yield batch

    def valid(self) -> Iterator[MicroBatch]:
        return self._feed.valid()

    def _wait_for(self, step: int) -> None:
        deadline = time.monotonic() + 60
        while not any(s.id.step == step and s.state == "committed" for s in scan(self._store)):
            assert time.monotonic() < deadline
            time.sleep(0.005)


def train(
    world: World,
    config: RunConfig,
    kill: Mapping[int, int] | None = None,
    *,
    feed: Any = None,
    patient: bool = False,
    host: Host | None = None,
    listing_digest: str = "synthetic",
    nearby: str | None = None,
    validator: Validator | None = None,
) -> Outcome:
    """One worker of a run; rank r dies when it has the batch of step index kill[r]."""
    torch.set_num_threads(1)
    return run(
        Prepared(with_recipe(config, None), config.name, listing_digest, order_of(config)),
        Worker(world, torch.device("cpu"), nearby),
        feed=feed or Feed(config, world, kill or {}, patient),
        store=store_of(config),
        host=host or Host(),
        validator=validator,
    )


def without_ray(config: RunConfig) -> Store:
    """Train as `fit` would, with the most workers that `config` allows, on the CPU, in processes that this one starts."""
    optim = dataclasses.replace(config.optim, precision=config.optim.precision or "fp32")
    prepared = open_run(dataclasses.replace(config, optim=optim), store_of(config))
    in_workers(config.workers.workers.high, _train_prepared, prepared, seconds=900.0)
    return store_of(config)


def train_here(prepared: OpenedRun) -> None:
    """Train an opened run to its end in this process, as its one worker."""
    _train_prepared(World(), prepared)


def _train_prepared(world: World, prepared: OpenedRun) -> None:
    run(
        prepared,
        Worker(world, torch.device("cpu")),
        feed=LocalFeed(prepared.source.open(), prepared.order, prepared.geometry, world),
        store=store_of(prepared.config),
        host=Host(),
    )


def job_of(config: RunConfig, checkpoint: CheckpointId) -> Job:
    """What a validation of a checkpoint of `train` is told."""
    geometry = Geometry(config.stage, config.data.resolution)
    settled = dataclasses.replace(config.optim, precision=config.optim.precision or "fp32")
    config = with_recipe(dataclasses.replace(config, optim=settled), None)
    source, order, store = source_of(config), order_of(config), store_of(config)
    return Job(checkpoint, config, config.name, source, order, geometry, store)


def store_of(config: RunConfig) -> Store:
    return Store.open(config.storage, config.name)


def checkpoints(config: RunConfig) -> dict[int, Snapshot]:
    """Every committed checkpoint by step; of two attempts the newer."""
    store = store_of(config)
    committed = [s.id for s in scan(store) if s.state == "committed"]
    return {c.step: read_checkpoint(store, c) for c in sorted(committed)}


def differences(a: Snapshot, b: Snapshot) -> list[str]:
    """Names of what is not equal to the bit; a run's name, place and losses are no part of its state."""
    names = sorted(a.tensors.keys() ^ b.tensors.keys())
    names += [
        n for n, t in a.tensors.items() if n in b.tensors and not torch.equal(t, b.tensors[n])
    ]
    for extra in (a.extra, b.extra):
        for key in ("name", "storage"):
            extra["config"].pop(key, None)
    keys = (a.extra.keys() | b.extra.keys()) - {"attempts"}
    return names + [k for k in keys if a.extra.get(k) != b.extra.get(k)]
