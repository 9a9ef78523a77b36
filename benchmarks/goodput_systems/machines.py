"""Machines that come and go as a recording or as rates have it: nodes of a Ray cluster on this machine, or mere places."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from ray.cluster_utils import Cluster

from raymat.analysis.planning.market import Change, Rates

STORE_BYTES = 2**28


def recorded(
    path: str, begin: int, speedup: float, noticed: float, most: int | None = None
) -> list[Change]:
    """Return a recording from its entry `begin` on, `speedup` times as fast; the same losses are announced for all.

    `most`: machines beyond so many are left out.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    gap, counts = content["metadata"]["gap_seconds"] / speedup, content["data"][begin:]
    counts = [min(count, most or count) for count in counts]
    rng = np.random.Generator(np.random.Philox(key=[begin, len(counts)]))
    found = [Change(0.0, counts[0])]
    for place, count in enumerate(counts):
        announced = bool(rng.random() < noticed)
        if count != found[-1].machines:
            found.append(Change(place * gap, count, count < found[-1].machines and announced))
    return found


def drawn(machines: int, mean: float, back: float, noticed: float, seed: int) -> list[Change]:
    """Return the first 200 changes of `machines` that one loses every `mean` seconds, replaced after `back` on average."""
    changes = Rates(3600 / mean / machines, back, noticed).changes(machines, seed)
    return [next(changes) for _ in range(200)]


@dataclass(frozen=True)
class Played:
    """A market that is what has happened."""

    told: tuple[Change, ...]

    @classmethod
    def of(cls, history: Sequence[tuple[float, int]], losses: Sequence[Loss]) -> Played:
        """`history`: how many machines there were from when on (Unix seconds)."""
        noticed = {loss.at for loss in losses if loss.noticed}
        began = history[0][0]
        return cls(
            tuple(
                Change(at - began, machines, any(abs(at - loss) < 1 for loss in noticed))
                for at, machines in history
            )
        )

    def changes(self, wanted: int, seed: int) -> Iterator[Change]:
        return iter(self.told)

    def unnoticed_per_hour(self, wanted: int) -> float:
        hours = max(self.told[-1].at, 1.0) / 3600
        pairs = itertools.pairwise(self.told)
        return sum(b.machines < a.machines and not b.noticed for a, b in pairs) / hours


class Machines(Protocol):
    """What a system runs on. Called in the main thread."""

    def add(self, count: int) -> None: ...

    def announce(self, count: int, seconds: float) -> None:
        """Say that so many, the newest, will go in `seconds`."""

    def lose(self, count: int) -> None:
        """Take the newest away at once."""


@dataclass
class Loss:
    """Machines that went."""

    at: float
    """Unix seconds."""
    machines: int
    """That were left."""
    noticed: bool


def play(
    changes: Iterable[Change],
    machines: Machines,
    notice: float,
    begin: Callable[[], None],
    ended: Callable[[], bool],
) -> tuple[list[Loss], list[tuple[float, int]]]:
    """Let machines come and go until the job has ended; return the losses, and how many were there from when on.

    The job begins once the first machines are there.
    """
    began, there = time.time(), 0
    losses: list[Loss] = []
    history: list[tuple[float, int]] = []
    for change in _with_announcements(changes, notice):
        while time.time() < began + change.at:
            if ended():
                return losses, history
            time.sleep(0.05)
        if isinstance(change, _Announced):
            machines.announce(there - change.machines, notice)
            continue
        if change.machines > there:
            machines.add(change.machines - there)
        else:
            machines.lose(there - change.machines)
            losses.append(Loss(time.time(), change.machines, change.noticed))
        there = change.machines
        history.append((time.time(), there))
        if len(history) == 1:
            begin()
            began = time.time()
    while not ended():
        time.sleep(0.05)
    return losses, history


class _Announced(Change):
    """A loss that is announced now."""


def _with_announcements(changes: Iterable[Change], notice: float) -> list[Change]:
    """Add, before each loss with notice, when it is said; never before the change that precedes it."""
    found: list[Change] = []
    for change in changes:
        if change.noticed:
            at = max(change.at - notice, found[-1].at)
            found.append(_Announced(at, change.machines))
        found.append(replace(change))
    return found


class Places:
    """Machines for processes that are started by hand: each place holds one."""

    def __init__(self) -> None:
        self.processes: list[int | None] = []
        """By place, the process that runs there."""
        self.lost = 0
        """Machines so far."""

    def add(self, count: int) -> None:
        self.processes += [None] * count

    def announce(self, count: int, seconds: float) -> None:
        """Nobody listens."""

    def lose(self, count: int) -> None:
        for _ in range(count):
            pid = self.processes.pop()
            self.lost += 1
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class RayNodes:
    """A head without room for workers, and nodes of two cores, with room for one worker each. To be made in the main thread."""

    def __init__(self, settings: dict[str, int]) -> None:
        """`settings`: Ray's own, beside its defaults."""
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES,
                "_system_config": settings,
            },
        )  # fmt: skip
        ray.init(address=self._cluster.address, log_to_driver=False)
        self._nodes: list[Any] = []

    def add(self, count: int) -> None:
        for _ in range(count):
            node = self._cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES, wait=False)
            self._nodes.append(node)
        for node in self._nodes[-count:]:
            self._cluster._wait_for_node(node)

    def announce(self, count: int, seconds: float) -> None:
        client = ray._raylet.GcsClient(address=self._cluster.address)
        deadline = int((time.time() + seconds) * 1000)
        for node in self._nodes[len(self._nodes) - count :]:
            client.drain_node(node.node_id, 2, "reclaimed", deadline)  # 2: preempted

    def lose(self, count: int) -> None:
        for _ in range(count):
            node = self._nodes.pop()
            (info,) = node.all_processes["raylet"]
            children = _children(info.process.pid)
            self._cluster.remove_node(node, allow_graceful=False)
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """End all of them."""
        ray.shutdown()
        self._cluster.shutdown()


def recommended_settings() -> dict[str, int]:
    """Return how the head looks for dead machines in every cluster that deploy/ describes."""
    text = Path(__file__).parents[2].joinpath("deploy/node/env.sh").read_text(encoding="utf-8")
    found = re.findall(r"RAY_(health_check_\w+)=(\d+)", text)
    return {name: int(value) for name, value in found}


def _children(pid: int) -> list[int]:
    """Return the processes that `pid` started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if int(parent) == pid:
                    found.append(int(entry.name))
    return found
