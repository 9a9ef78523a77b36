"""A process that starts the workers of small runs, some of which are to kill themselves; used by killcases.py.

Reads JSON lines {storage, name, options, world, lag, kill} and forks the workers of each run, so that torch is
imported once for many kills; prints for each run how its workers ended: exit statuses by rank, negative for signals,
null for one that had to be ended from outside.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import raymat.train.observability.tensorboard_log  # noqa: F401  (imported late otherwise, by each worker)
from raymat.checkpoint.catalog import scan
from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch
from raymat.distributed.world import World
from raymat.train.loop import startup, trainer
from tests.support import runs
from tests.support.injector import Injector, Journal, Kill, install
from tests.support.small import build_small

SECONDS = 60.0
"""A run that takes longer hangs."""


class PacedFeed(runs.Feed):
    """Holds each step back until the save that was due `lag` saves before the newest one is committed.

    So none is left out however slow the disk is; with a lag of 1 snapshots are copied and written while steps run.
    A worker of a run that somebody died in waits no longer.
    """

    def __init__(self, config: RunConfig, world: World, lag: int, journal: Journal) -> None:
        super().__init__(config, world, {})
        self._every, self._lag = config.checkpoint.checkpoint_interval.steps, lag
        self._journal = journal
        self._pause = 0.05 if "://" in config.storage else 0.002
        self._deaths = len(journal.read("killed"))

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in super().train(first_step, end_step):
            self._wait_for((batch.step // self._every - self._lag) * self._every)
            yield batch

    def _wait_for(self, due: int) -> None:
        while due > 0 and len(self._journal.read("killed")) == self._deaths:
            if any(s.id.step >= due and s.state == "committed" for s in scan(self._store)):
                return
            time.sleep(self._pause)


def work(world: World, order: dict[str, Any], meeting: Path) -> None:
    """One worker of a run, from the beginning to its end."""
    torch.set_num_threads(1)
    if world.size > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=world.rank, world_size=world.size
        )
    config = runs.tiny(order["storage"], order["name"], **order["options"])
    journal = Journal(Path(order["journal"]))
    injector = Injector(world.rank, order["kill"] and Kill(**order["kill"]), journal)
    install(injector)
    startup.build = build_small
    outcome = runs.train(world, config, feed=PacedFeed(config, world, order["lag"], journal))
    journal.note("passed", rank=world.rank, counts=dict(injector.passed))
    journal.note("ended", rank=world.rank, **_plain(outcome))
    if world.size > 1:
        time.sleep(0.1)  # others may still be in a collective with this one


def _plain(outcome: trainer.Outcome) -> dict[str, Any]:
    fields = dataclasses.asdict(outcome)
    return fields | {"checkpoint": str(outcome.checkpoint)}


def start(world: World, order: dict[str, Any], meeting: Path) -> int:
    """Fork a worker; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(f"{order['journal']}.stderr", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        work(world, order, meeting)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Like a worker that is ended by others: what its threads do stops where it is.
        os._exit(status)


def wait_for(children: list[int]) -> list[int | None]:
    """How each child ended; those that never do are killed."""
    ended: dict[int, int | None] = {}
    deadline = time.monotonic() + SECONDS
    while len(ended) < len(children):
        for child in set(children) - ended.keys():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                ended[child] = None
        time.sleep(0.001)
    return [ended[child] for child in children]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rm", dir="/tmp") as folder:
        for number, line in enumerate(sys.stdin):
            order = json.loads(line)
            size, meeting = order["world"], Path(folder) / f"meet-{number}"
            children = [start(World(rank, size), order, meeting) for rank in range(size)]
            print(json.dumps(wait_for(children)), flush=True)


if __name__ == "__main__":
    main()
