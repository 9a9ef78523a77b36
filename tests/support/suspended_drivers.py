"""Drivers of one run without Ray, each a process that trains by itself, and suspensions of them at drawn moments."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from raymat.config.run import RunConfig
from raymat.data.batch import MicroBatch
from raymat.data.feed import LocalFeed
from raymat.distributed.world import World
from raymat.errors import LeaseError, LeaseLostError
from raymat.storage.store import Store
from raymat.train.loop import startup, trainer
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.run.lease.entries import Pace
from raymat.train.run.lease.lease import Lease
from raymat.train.run.lease.lease_watch import LeaseWatch
from raymat.train.run.lease.process import Owner
from raymat.train.run.notice import HeardNotice, Hearing, LeavingError, Notice
from raymat.train.run.open_run import OpenedRun, open_run
from raymat.train.run.run_file import anchor_run, mend_run_file
from tests.support.small import build_small

PACE = Pace(renew=0.2, ttl=1.5, look=0.05, watch=0.1)
STEP_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one driver does."""

    config: RunConfig
    environment: Mapping[str, str]
    naps: tuple[int, ...] = ()
    """Calls to storage before which it suspends itself, counted from 1."""
    take_over: bool = False


class _Napping:
    """A backend that suspends the process before some of its calls."""

    def __init__(self, backend: Any, naps: Sequence[int]) -> None:
        self._backend, self._naps = backend, set(naps)
        self._calls, self._lock = 0, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found) or name.startswith("_"):
            return found

        def call(*arguments: Any) -> Any:
            with self._lock:
                self._calls += 1
                nap = self._calls in self._naps
            if nap:
                os.kill(os.getpid(), signal.SIGSTOP)
            return found(*arguments)

        return call


class _DrivenHost(Host):
    """A worker's host that hears what its driver and its watch of the lease say."""

    def __init__(self, watch: LeaseWatch) -> None:
        self._watch = watch
        self._asked: Hearing | None = None

    def ask(self, notice: Notice) -> None:
        self._asked = self._asked or Hearing(notice)

    def notice(self) -> HeardNotice | None:
        self._watch.raise_if_lost()
        return None if self._asked is None else self._asked.now()

    def require_lease(self) -> None:
        self._watch.require()


class _SlowFeed(LocalFeed):
    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in super().train(first_step, end_step):
            time.sleep(STEP_SECONDS)
            yield batch


def drive(plan: Plan) -> str:
    """Drive a run as `fit` does, training in this process; what became of it, in a word."""
    config = plan.config
    store = Store.open(config.storage, config.name)
    store.backend = _Napping(store.backend, plan.naps)  # type: ignore[assignment]
    # As if no other process could look up whether this one lives: only its silence shows.
    owner = dataclasses.replace(Owner.me(), machine=None)
    try:
        with _acquire(store, owner, plan.take_over) as lease:
            run = open_run(config, store, tenure=lease)
            anchor_run(store, run.run_id, lease.name)
            if run.complete:
                return "complete"
            lease.wait_until_alone()
            _train(run, store, lease)
            mend_run_file(store, lease)
            return "complete"
    except LeaseLostError:
        return "lost"
    except LeavingError:
        return "left"


def _acquire(store: Store, owner: Owner, take_over: bool) -> Lease:
    while True:
        try:
            return Lease.acquire(
                store, take_over=take_over, pace=PACE, owner=owner, say=lambda line: None
            )
        except LeaseError:
            time.sleep(0.2)


def _train(run: OpenedRun, store: Store, lease: Lease) -> None:
    host = _DrivenHost(LeaseWatch(store, lease.name, PACE))
    with lease.calling(host.ask):
        trainer.run(
            run,
            Worker(World(), torch.device("cpu")),
            feed=_SlowFeed(run.source.open(), run.order, run.geometry, World()),
            store=store,
            host=host,
        )


def _main(plan: Plan, told: Connection, log: Path) -> None:
    os.environ.update(plan.environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    startup.build = build_small  # type: ignore[assignment]
    told.send(drive(plan))


class Driver:
    """A driver's process."""

    def __init__(self, plan: Plan, log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "raymat.train.loop.trainer", __name__])
        self._told, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_main, args=(plan, theirs, log), daemon=True)
        self.process.start()
        theirs.close()
        self.wakes: float | None = None

    def suspended(self) -> bool:
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def signal(self, number: int) -> None:
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, number)

    def result(self) -> str | None:
        """What became of it; None while it lives."""
        if self.process.is_alive():
            return None
        try:
            return str(self._told.recv()) if self._told.poll() else "crashed"
        except EOFError:
            return "crashed"


@dataclasses.dataclass
class Chaos:
    """Three drivers at a time of one run, each suspended now and then, until one says that it is complete."""

    make: Callable[[tuple[int, ...], bool], Plan]
    log: Path
    draws: random.Random
    results: list[str] = dataclasses.field(default_factory=list)
    suspensions: int = 0

    def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        drivers: list[Driver] = []
        try:
            while True:
                assert time.monotonic() < deadline, (self.results, self.log.read_text()[-3000:])
                complete = "complete" in self.results
                if complete and not drivers:
                    return
                while not complete and len(drivers) < 3:
                    drivers.append(self._start())
                time.sleep(0.02)
                drivers = [driver for driver in drivers if not self._ended(driver)]
                for driver in drivers:
                    self._disturb(driver)
        finally:
            for driver in drivers:
                driver.process.kill()

    def _start(self) -> Driver:
        # While it gets the lease and opens the run, or anywhere.
        ends = [self.draws.choice((40, 400)) for _ in range(self.draws.randrange(4))]
        naps = tuple(self.draws.randint(1, end) for end in ends)
        return Driver(self.make(naps, self.draws.random() < 0.2), self.log)

    def _ended(self, driver: Driver) -> bool:
        result = driver.result()
        if result is not None:
            self.results.append(result)
        return result is not None

    def _disturb(self, driver: Driver) -> None:
        now = time.monotonic()
        if driver.wakes is None and self.draws.random() < 0.01:
            driver.signal(signal.SIGSTOP)
        if driver.wakes is None and driver.suspended():
            self.suspensions += 1
            driver.wakes = now + self.draws.uniform(0.1, 5.0)
        elif driver.wakes is not None and now >= driver.wakes:
            driver.signal(signal.SIGCONT)
            driver.wakes = None
