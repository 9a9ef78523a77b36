"""A scaling policy that counts on responding machines only, and never stops workers that train.

Ray's elastic policy takes draining nodes, and nodes that died within the last half minute, for alive; asks for places there,
and waits the start time-out out. And while training runs it restarts the workers as soon as there is room for more, without
a word to them: all since the newest commit is lost. Here a start counts on machines that respond now; and a running group is
asked to leave: it commits, and leaves by itself (`raymat.train.run.notice`).
"""

from __future__ import annotations

import time
from collections.abc import Set
from typing import Any

from raymat.cluster.blackboard import Blackboard
from raymat.cluster.controller.prestart import Prestart
from raymat.cluster.controller.room_log import RoomLog
from raymat.cluster.nodes import places_on, usable_nodes
from raymat.cluster.ray_train_internals import (
    ElasticPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    failed_to_start,
    worker_resources,
)
from raymat.distributed.joining import ROOM_SECONDS, worth_after
from raymat.train.run.notice import LeavingError, Notice

GROWTH_SECONDS = 1.0
"""Between two comparisons of a running group with what the cluster could hold."""
TRUST_SECONDS = 2.0
"""How long room for more workers must have stood to be told: a machine that has died counts as alive for a second or two."""
RESTART_SECONDS = 15.0
"""The assumed cost of a restart, before one was measured."""


class RestartTimer:
    """Measures what a restart costs: from the last sight of the workers before to the first that train."""

    def __init__(self) -> None:
        self.seconds = RESTART_SECONDS
        """The newest measured cost."""
        self._running: float | None = None
        """When the workers were last seen to run."""
        self._left: float | None = None
        """When the workers before were last seen, until the new ones train."""

    def note_running(self, now: float) -> None:
        """Note that workers run."""
        self._running = now

    def note_stopped(self) -> None:
        """Note that no workers run."""
        self._left, self._running = self._running or self._left, None

    def note_training(self, now: float) -> None:
        """Note that the workers are at their steps."""
        if self._left is not None:
            self.seconds, self._left = now - self._left, None


class Capacity:
    """How many workers the cluster can hold, learned from its nodes and from starts that found no places."""

    def __init__(self, scaling_config: Any) -> None:
        self._config = scaling_config
        self._usable: frozenset[str] = frozenset()
        self._ceiling: tuple[frozenset[str], int] | None = None
        """The most workers that found places on these nodes: somebody else has the rest."""

    def places(self, check: bool) -> dict[str, int]:
        """Return how many workers would fit on each node (id) if nothing else ran; `check`: on those that respond now."""
        each = worker_resources(self._config)
        # Without GPUs, workers that fill a node would leave no core to decode with.
        share = 1.0 if self._config.use_gpu else 0.5
        usable = usable_nodes(check)
        return {name: places_on(node["Resources"], each, share) for name, node in usable.items()}

    def count(self, check: bool) -> int:
        """Return how many workers would fit in all."""
        places = self.places(check)
        possible = sum(places.values())
        self._usable = frozenset(places)
        if self._ceiling is not None and self._ceiling[0] == self._usable:
            possible = min(possible, self._ceiling[1])
        return min(possible, self._config.max_workers)

    def beyond(self, taken: Set[str], count: int) -> dict[str, int]:
        """Return where `count` more workers fit, by node (id) that is not `taken`; fewer where there is no such place."""
        found: dict[str, int] = {}
        for name, places in self.places(check=False).items():
            here = min(places, count - sum(found.values()))
            if here and name not in taken:
                found[name] = here
        return found

    def note_failed_start(self, workers: int) -> None:
        """Note that `workers` found no places: count fewer while the nodes are the same."""
        self._ceiling = (self._usable, max(self._config.min_workers, workers - 1))


class RaymatScalingPolicy(ElasticPolicy):
    """The controller's policy on how many workers to start, and when others are worth a restart.

    Args:
        board: asks the workers to leave.
        rooms: tells how many workers there is room for.
        spares: whether to keep processes ready for the next start.
        grows: whether machines may join.
    """

    def __init__(
        self, scaling_config: Any, board: Blackboard, rooms: RoomLog, spares: bool, grows: bool
    ) -> None:
        super().__init__(scaling_config, grows)
        self._board, self._rooms = board, rooms
        self._capacity = Capacity(scaling_config)
        self._timer = RestartTimer()
        self._prestart = Prestart() if spares else None
        self._started = time.monotonic()
        self._asked = 0
        """How many workers the newest start was to have."""
        self._training = False
        self._looked = float("-inf")
        self._room: tuple[int, float] | None = None
        """For how many workers there is room, and since when."""
        self._joining: dict[str, int] = {}
        """By node (id) without workers, how many will start there when those that run have made way."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start as many workers as find places on nodes that respond now."""
        self._raise_if_stopped()
        self.request_resources()
        self._timer.note_stopped()
        possible = self._capacity.count(check=True)
        self._rooms.note(possible)
        least = self.scaling_config.min_workers
        if possible < least:
            room = f"waiting for machines: there is room for {possible} workers of at least {least}"
            self._board.set_lack(room)
            time.sleep(0.5)  # Ray's controller asks again at once, and would burn a core
            return NoopDecision()
        self._started, self._room, self._asked = time.monotonic(), None, possible
        self._training, self._joining = False, {}
        if self._prestart is not None:
            self._prestart = Prestart()  # the workers that start take what there is
        self._board.forget_workers()
        return ResizeDecision(possible, worker_resources(self.scaling_config))

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        """Leave the workers alone, but ask them to make way for more where that pays."""
        self.request_resources()
        now = time.monotonic()
        self._timer.note_running(now)
        if self._is_training(now) and self._prestart is not None:
            self._prestart.keep(worker_group_state.workers, self._joining)
        if now - self._looked >= GROWTH_SECONDS:
            self._looked = now
            self._consider_growth(worker_group_state, now)
        return NoopDecision()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Start fewer workers next time if these found no places within the start time-out."""
        super().after_controller_state_update(previous_state, current_state)
        if failed_to_start(current_state):
            self._capacity.note_failed_start(self._asked)

    def _raise_if_stopped(self) -> None:
        """Raise if the run is to stop while no workers run: there is nothing to commit."""
        request = self._board.leave_request()
        if request is not None and request.final:
            raise LeavingError(f"{request.reason}: no workers were running", final=True)

    def _is_training(self, now: float) -> bool:
        if not self._training:
            signs = self._board.signs().values()
            self._training = any(sign.doing.what == "training" for sign in signs)
            if self._training:
                self._timer.note_training(now)
        return self._training

    def _consider_growth(self, group: Any, now: float) -> None:
        """Ask the workers to make way for more of them, once the room for more has stood for a while.

        Meanwhile the machines that came start the processes of theirs: the others train until these have their imports done.
        """
        workers, possible = group.num_workers, self._capacity.count(check=False)
        if possible <= workers:  # also if what came has gone again
            self._rooms.note(possible)
            self._withdraw_request()
            return
        if self._room is None or self._room[0] != possible:
            self._room = (possible, now)
        if now - self._room[1] >= TRUST_SECONDS:
            self._rooms.note(possible)
        if now - self._started < worth_after(workers, possible, self._timer.seconds):
            return
        taken = {worker.metadata.node_id for worker in group.workers}
        self._joining = self._capacity.beyond(taken, possible - workers)
        if now - self._room[1] < ROOM_SECONDS:
            return
        if self._capacity.count(check=True) < possible:  # a frozen node counts as alive for a while
            self._withdraw_request()
            return
        text = f"there is room for {possible} workers instead of {workers}"
        self._board.request_leave(Notice(text))

    def _withdraw_request(self) -> None:
        if self._room is not None:
            self._board.request_leave(None)
        self._room = None
