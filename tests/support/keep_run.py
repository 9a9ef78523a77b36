"""Keeps a run of this version for later ones: `python -m tests.support.keep_run tests/kept/NAME`. See tests/kept/README.md."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raymat.checkpoint.catalog import newest
from raymat.config.run import build
from raymat.data.batch import MicroBatch
from raymat.data.feed import LocalFeed
from raymat.distributed.world import World
from raymat.storage.store import Store
from raymat.train.loop import startup
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.loop.trainer import run
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.optim.step_trial import step_trial
from raymat.train.run.open_run import open_run
from raymat.train.run.run_status import read_committed_step
from tests.support.small import build_small
from tests.support.workers import WorkerError, in_workers
from tests.train.run.test_kept_run import OPTIONS, digest_of

KILLED_AFTER = 10
NOT_KEPT = ("config", "versions", "arithmetic", "attempts")
"""Parts of the state that depend on the machine and on how often the run was killed."""


class _DeadlyFeed(LocalFeed):
    """Kills the process after some steps."""

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in super().train(first_step, end_step):
            if batch.step == KILLED_AFTER:
                while read_committed_step(Store.open(".", "run")) < KILLED_AFTER - 1:
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def _train(world: World, folder: str, feed: type[LocalFeed]) -> None:
    os.chdir(folder)  # the configuration is kept too, and must name no path of this machine
    torch.set_num_threads(1)
    startup.build = build_small  # type: ignore[assignment]
    config = build("base", OPTIONS | {"storage": "."})
    store = Store.open(config.storage, config.name)
    prepared = open_run(config, store)
    run(
        prepared,
        Worker(world, torch.device("cpu")),
        feed=feed(prepared.source.open(), prepared.order, prepared.geometry, world),
        store=store,
        host=Host(),
    )


def _expected(store: Store) -> dict[str, Any]:
    found = newest(store)
    assert found is not None
    tensors = {
        name: [digest_of(t), float(t.double().sum()), float(t.double().abs().sum())]
        for name, t in found[1].tensors.items()
    }
    extra = {k: v for k, v in found[1].extra.items() if k not in NOT_KEPT}
    rows = [[r["step"], r["kind"], r["loss"], r.get("digest")] for r in read_metrics(store)]
    here = {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "step trial": step_trial("fp64"),
    }
    return here | {"tensors": tensors, "extra": extra, "rows": rows}


def main(folder: Path) -> None:
    """Train a run that is killed, and the same one undisturbed."""
    with tempfile.TemporaryDirectory() as undisturbed:
        in_workers(1, _train, undisturbed, LocalFeed)
        expected = _expected(Store.open(undisturbed, "run"))
    folder.mkdir(parents=True)
    with contextlib.suppress(WorkerError):
        in_workers(1, _train, str(folder), _DeadlyFeed)
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
