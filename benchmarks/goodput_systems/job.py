"""The job that all three systems do: the same network, examples and arithmetic, and a log of the steps as they end.

All machines are one here, whose cores the workers share, so that two train no faster than one. A job may therefore have each
worker wait for every example, as for a device of its own: then more machines do more, and cores are free, as beside a GPU.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raymat.cluster.worker.entry import train_worker
from raymat.config.run import RunConfig, build
from raymat.data.batch import Geometry, MicroBatch
from raymat.data.batch_maker import make_train_batch
from raymat.data.dataset.source import SourceSpec
from raymat.data.sample_order import SampleOrder
from raymat.distributed.world import World
from raymat.model import matting
from raymat.storage.store import Store
from raymat.train.loop.train_step import TrainStep
from raymat.train.optim.forward import ForwardPass
from raymat.train.optim.lr_schedule import rates

STEPS_LOG = "GOODPUT_STEPS_LOG"
"""The environment variable that names the file of the steps."""
DEVICE = "GOODPUT_DEVICE_SECONDS"
"""The one that says how long the job's device takes for an example."""
PAIRS = 64


@dataclass(frozen=True)
class Job:
    """MattingBase with mobilenetv2 on made pictures, in steps of 8 examples."""

    steps: int
    side: int
    device: float = 0.0
    """Seconds of a worker's own device for an example, in which it waits."""

    def config(self, **options: Any) -> RunConfig:
        """Return it as a run of raymat's."""
        fixed = {
            "synthetic": PAIRS, "steps": self.steps, "batch_size": 8, "resolution": self.side,
            "crop": self.side, "backbone": "mobilenetv2", "device": "cpu", "precision": "fp32",
            "valid_examples": 0, "threads": 1, "epoch_examples": 10**6, "log_loss_interval": 1,
            "log_images_interval": 10**6,
        }  # fmt: skip
        return build("base", fixed | options)


class StepsLog:
    """Each step as it ends, with the number of workers that took it; steps done again stand there again."""

    def __init__(self) -> None:
        self._path = Path(os.environ[STEPS_LOG])

    def add(self, step: int, world: int) -> None:
        """Note that completed step `step` has ended now."""
        line = json.dumps({"time": time.time(), "step": step, "world": world})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class LiveLog:
    """A logger of raymat's that notes rows as they come, and not as they are committed."""

    def __init__(self, store: Store, attempt: int) -> None:
        self._log = StepsLog()

    def row(self, row: dict[str, Any]) -> None:
        if row["kind"] == "train":
            self._log.add(row["step"], dist.get_world_size() if dist.is_initialized() else 1)

    def resumed(self, step: int) -> None: ...

    def images(self, step: int, grids: Any) -> None: ...

    def cut(self, step: int) -> None: ...

    def flush(self, step: int) -> None: ...


def train_on_device(config: dict[str, Any]) -> None:
    """Train as one of raymat's workers, with a device of the job's."""
    seconds, step = float(os.environ[DEVICE]), TrainStep.__call__

    def slowed(self: TrainStep, batch: MicroBatch, *more: Any, **options: Any) -> Any:
        time.sleep(seconds * len(batch.examples))
        return step(self, batch, *more, **options)

    TrainStep.__call__ = slowed  # type: ignore[method-assign]
    train_worker(config)


class OtherTraining:
    """The same steps outside of raymat's loop, for the systems beside it."""

    def __init__(self, job: Job, world: World) -> None:
        torch.set_num_threads(1)
        self._world, self._config = world, job.config(name="other")
        data = self._config.data
        self._order = SampleOrder(
            seed=0, pairs=PAIRS, backgrounds=PAIRS, batch_size=data.batch_size, crop=data.crop,
            total_examples=job.steps * data.batch_size,
        )  # fmt: skip
        self._source = SourceSpec.synthetic(count=PAIRS, seed=0, size=job.side, valid_count=0)
        self._geometry = Geometry("base", job.side)
        forward = ForwardPass(
            stage="base", precision="fp32", seed=0, resolution=job.side, device=torch.device("cpu")
        )
        network = matting.build("base", self._config.model, 0)
        self.step = TrainStep(network, forward, world)
        self._steps, self._device = job.steps, job.device

    def train(self, done: int) -> Iterator[int]:
        """Train from `done` completed steps to the end; yield after each step how many are completed."""
        log = StepsLog()
        for completed, _ in self.losses(done):
            if self._world.rank == 0:
                log.add(completed, self._world.size)
            yield completed

    def losses(self, done: int = 0) -> Iterator[tuple[int, float]]:
        """Do the same; yield after each step how many are completed, and its loss over all workers."""
        for number, batch in enumerate(self._batches(done), done):
            examples = number * self._config.data.batch_size
            time.sleep(self._device * len(batch.examples))
            result = self.step(batch, self._config.data.batch_size, rates(self._config, examples))
            yield number + 1, result.health.read().loss

    def _batches(self, begin: int) -> Iterator[MicroBatch]:
        """Make the next batch in a thread while one is trained on."""
        source, size = self._source.open(), self._config.data.batch_size
        with ThreadPoolExecutor(1) as pool:

            def make(step: int) -> MicroBatch:
                share = self._world.share(size)
                return make_train_batch(source, self._order, self._geometry, step, share)

            coming = pool.submit(make, begin) if begin < self._steps else None
            for step in range(begin, self._steps):
                assert coming is not None
                batch = coming.result()
                coming = pool.submit(make, step + 1) if step + 1 < self._steps else None
                yield batch
