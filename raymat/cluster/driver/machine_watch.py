"""The watch over the machines of a run: one that is lost is said, timed and, if its head is slow to see it, declared dead.

Machines without a worker make batches. If one dies no worker fails, and training stands still until Ray gives its read
tasks to others: only once the head believes that the machine is dead, which takes a head with Ray's defaults 15 s or more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError

from raymat.cluster.blackboard import MAX_LINES, Blackboard, Line, SignOfLife
from raymat.cluster.nodes import responding_nodes
from raymat.cluster.ray_internals import (
    IDLE_TERMINATION,
    UNEXPECTED_TERMINATION,
    declare_dead,
    is_head,
)
from raymat.storage.store import Store
from raymat.train.observability.attempt_events import MachineLost
from raymat.train.observability.events import EventLog

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
STILL_SECONDS = 1.5
"""Without a step for longer, machines are asked whether they are there."""
MAX_MISSES = 3
"""A machine that did not answer so often, one time after the other, is dead: it refuses at once, or is silent for 3 s each."""
SETTLE_SECONDS = 10.0
"""Batches that were made before carry training on for a while: how long a loss may take to show."""

Node = Mapping[str, Any]
"""An item of `ray.nodes()`."""


@dataclass
class _Loss:
    """A machine that is gone, until training has gone on without it."""

    node: Node
    seen: float
    ranks: list[int]
    still: float = 0.0
    """The longest time without a step since, in seconds."""

    def event(self) -> MachineLost:
        """Return what the run's events say of it."""
        return MachineLost(
            node=self.node["NodeID"],
            ip=self.node["NodeManagerAddress"],
            reason=str(self.node.get("DeathReasonMessage") or "no reason is known"),
            ranks=self.ranks,
            still=round(self.still, 1),
        )


class Pace:
    """How long training has made no step, as seen from outside."""

    def __init__(self) -> None:
        self._at: tuple[int, int] | None = None
        self._moved = time.monotonic()

    def still(self, at: tuple[int, int] | None) -> tuple[float, bool]:
        """Return the seconds without a step up to now, and whether they end now. `at`: attempt and step; None: not known."""
        now = time.monotonic()
        seconds = now - self._moved
        if at is None or at == self._at:
            return (seconds if self._at is not None else 0.0), False
        began, self._at, self._moved = self._at is None, at, now
        return (0.0 if began else seconds), True


class MachineWatch:
    """A thread that watches the machines while a block runs. A run goes on without it: what it cannot find out it leaves."""

    def __init__(self, board: Blackboard, store: Store) -> None:
        self._board, self._store = board, store
        self._head = ray.get_runtime_context().gcs_address
        self._pace = Pace()
        self._alive: set[str] = set()
        self._signs: Mapping[int, SignOfLife] = {}
        """The workers' signs of life at the look before: those of an attempt are forgotten when the next one begins."""
        self._misses: Counter[str] = Counter()
        self._losses: list[_Loss] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raymat-machines", daemon=True)

    def __enter__(self) -> MachineWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=5)
        self._report(self._losses)

    def _run(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            try:
                self._poll()
            except (RayError, ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
                log.info("cannot look after the machines: %s", error)

    def _poll(self) -> None:
        nodes = {node["NodeID"]: node for node in ray.nodes()}
        self._note_losses(nodes)
        progress = self._board.news(MAX_LINES).progress
        at = None if progress is None else (progress.attempt, progress.step)
        still, moved = self._pace.still(at)
        self._note_pace(still, moved)
        if still >= STILL_SECONDS:
            self._ask({name: nodes[name] for name in self._alive})
        else:
            self._misses.clear()

    def _note_losses(self, nodes: Mapping[str, Node]) -> None:
        alive = {name for name, node in nodes.items() if node["Alive"]}
        signs = self._board.signs()
        for name in self._alive - alive:
            node = nodes.get(name)
            if node is None or node.get("DeathReason") == IDLE_TERMINATION:
                continue
            known = [*signs.items()]
            # The workers have left a drained machine before it goes.
            if node.get("DeathReason") == UNEXPECTED_TERMINATION:
                known += self._signs.items()
            ranks = sorted({rank for rank, sign in known if sign.node == name})
            loss = _Loss(node, time.monotonic(), ranks)
            self._losses.append(loss)
            event = loss.event()
            self._board.print_line(Line(event.loss, event.level, event.kind))
        self._alive, self._signs = alive, signs or self._signs

    def _note_pace(self, still: float, moved: bool) -> None:
        for loss in self._losses:
            loss.still = max(loss.still, still)
        if moved:
            now = time.monotonic()
            settled = [each for each in self._losses if now - each.seen >= SETTLE_SECONDS]
            self._losses = [each for each in self._losses if each not in settled]
            self._report(settled)

    def _report(self, losses: list[_Loss]) -> None:
        for loss in losses:
            event = loss.event()
            EventLog.for_driver(self._store).emit(event)
            self._board.print_line(Line(event.line, event.level, event.kind))

    def _ask(self, nodes: Mapping[str, Node]) -> None:
        """Declare dead who does not answer, again and again, while training stands still."""
        asked = {name: node for name, node in nodes.items() if not is_head(node)}
        for name in asked.keys() - responding_nodes(asked):
            self._misses[name] += 1
            if self._misses[name] >= MAX_MISSES:
                log.info("node %s does not answer: it is declared dead", name)
                declare_dead(self._head, name, f"its raylet did not answer {MAX_MISSES} times")
