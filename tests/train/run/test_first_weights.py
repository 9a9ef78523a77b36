"""Laws of `--init`: a run begins with the weights that it was begun with, whatever lies there when it starts again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.config.run import RunConfig, to_dict
from raymat.data.batch import MicroBatch
from raymat.data.feed import LocalFeed
from raymat.distributed.world import World
from raymat.errors import ConfigError, WeightsError
from raymat.model.matting import build
from raymat.storage.store import Store
from raymat.train.loop.interfaces import Worker
from raymat.train.loop.trainer import run
from raymat.train.run.open_run import OpenedRun, open_run
from tests.support import runs
from tests.support.workers import WorkerError, in_workers


def config_of(folder: Path, name: str, init: str, **options: Any) -> RunConfig:
    options = {"steps": 3, "checkpoint_interval": 100, "precision": "fp32"} | options
    return runs.tiny(folder, name, "base", init=init, synthetic=8, valid_examples=0, **options)


def opened(config: RunConfig) -> OpenedRun:
    return open_run(config, runs.store_of(config))


def weights(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    config = runs.tiny(folder, "any", "base")
    return dict(build("base", config.model, seed).state_dict())


def commit(folder: Path, seed: int, step: int) -> None:
    """A checkpoint of the run `source`."""
    config = runs.tiny(folder, "source", "base")
    tensors = {f"model/{name}": tensor for name, tensor in weights(folder, seed).items()}
    snapshot = Snapshot.take(step, tensors, {"config": to_dict(config)})
    write_share(Store.open(str(folder), "source"), CheckpointId(step, 1), snapshot, World(), "id")


class Dying(LocalFeed):
    """A feed whose process is killed when it is asked for a step."""

    kill_at = -1

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in super().train(first_step, end_step):
            if batch.step == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def train(world: World, config: RunConfig, kill_at: int) -> None:
    torch.set_num_threads(1)
    prepared = opened(config)
    feed = Dying(prepared.source.open(), prepared.order, prepared.geometry, world)
    feed.kill_at = kill_at
    worker = Worker(world, torch.device("cpu"))
    run(prepared, worker, feed=feed, store=runs.store_of(config), host=runs.Host())


def test_a_run_that_is_killed_before_its_first_checkpoint_begins_again_with_the_same_weights(
    tmp_path: Path,
) -> None:
    commit(tmp_path, 5, 10)
    undisturbed = config_of(tmp_path, "undisturbed", f"{tmp_path}/source")
    in_workers(1, train, undisturbed, -1)
    config = config_of(tmp_path, "run", f"{tmp_path}/source")
    with pytest.raises(WorkerError, match="rank 0 died"):
        in_workers(1, train, config, 2)
    assert runs.checkpoints(config) == {}
    commit(tmp_path, 6, 20)  # the source trains on
    in_workers(1, train, config, -1)
    found, expected = (runs.checkpoints(each)[3] for each in (config, undisturbed))
    assert runs.differences(found, expected) == []


def test_a_moved_init_with_the_same_weights_goes_on_and_other_ones_are_refused(
    tmp_path: Path,
) -> None:
    file, copy, other = (tmp_path / name for name in ("a.pth", "copy.pth", "other.pth"))
    torch.save(weights(tmp_path, 5), file)
    torch.save({"state_dict": weights(tmp_path, 5)}, copy)
    torch.save(weights(tmp_path, 6), other)
    config = config_of(tmp_path, "run", str(file))
    opened(config)
    file.unlink()
    with pytest.raises(WeightsError, match=r"a\.pth"):
        opened(config)
    with pytest.raises(ConfigError, match=f"--init was {file}, is {other}; .*other weights than"):
        opened(config_of(tmp_path, "run", str(other)))
    moved = config_of(tmp_path, "run", str(copy))
    assert [change.line for change in opened(moved).changes] == [
        f"--init has moved: it is now {copy}, and the weights are the same"
    ]
    in_workers(1, train, moved, -1)
    copy.unlink()
    longer = opened(moved)
    assert (longer.complete, longer.changes) == (True, ())


def test_a_file_that_was_overwritten_before_the_first_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save(weights(tmp_path, 5), file)
    config = config_of(tmp_path, "run", str(file))
    began = opened(config)
    torch.save(weights(tmp_path, 6), file)
    with pytest.raises(WeightsError, match="holds other weights than when the run was begun"):
        opened(config)
    assert began.first_weights is not None
    assert began.first_weights.url == str(file)
