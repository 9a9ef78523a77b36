"""How many workers to start, and when others are worth a restart: Ray's elastic policy with eyes of its own.

Ray's policy takes draining nodes, and nodes that died within the last half minute, for alive; asks for places there, and waits
the start time-out out. And while training runs it restarts the workers as soon as there is room for more, without
a word to them: all since the newest commit is lost. Here a start counts on machines that answer now; and a running
group is never stopped: it is told, commits, and leaves by itself (`raymat.train.run.notice`).
"""

from __future__ import annotations

import time
from typing import Any

from raymat.cluster.blackboard import Blackboard
from raymat.cluster.controller.prestart import Prestart
from raymat.cluster.nodes import places_on, usable_nodes
from raymat.cluster.ray_train_internals import (
    ElasticPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
    failed_to_start,
    worker_resources,
)
from raymat.train.run.notice import LeavingError, Notice

GROWTH_SECONDS = 5.0
"""How often a running group is compared with what the cluster could hold."""
RESTART_SECONDS = 15.0
"""What a restart is taken to cost before one was measured."""
SETTLE_SECONDS = 10.0
"""Machines come in groups: room for more workers must have stood so long before it is worth a restart."""


def growth_pays(
    workers: int, possible: int, *, restart_seconds: float, expected_seconds: float
) -> bool:
    """Whether to restart `workers` workers as `possible` ones.

    The restart costs `restart_seconds` of all workers' time; then the work goes `possible / workers` times as fast, for
    the `expected_seconds` until the number is likely to change again. It pays if more is done by then.
    """
    if possible <= workers:
        return False
    return possible * (expected_seconds - restart_seconds) > workers * expected_seconds


class RaymatScalingPolicy(ElasticPolicy):
    """See the module's text.

    Args:
        board: by which the workers hear that others should take their places.
        spares: whether to keep processes ready for the next start.
    """

    def __init__(self, scaling_config: Any, board: Blackboard, spares: bool) -> None:
        super().__init__(scaling_config)
        self._board = board
        self._looked = float("-inf")
        self._room_since: tuple[int, float] | None = None
        self._started = time.monotonic()
        self._restart_seconds = RESTART_SECONDS
        self._training = False
        self._spares = Prestart() if spares else None
        self._worked: float | None = None
        """When the workers were last seen to run."""
        self._left: float | None = None
        """When those before were last seen, until the new ones train."""
        self._asked = 0
        self._usable: frozenset[str] = frozenset()
        self._ceiling: tuple[frozenset[str], int] | None = None
        """So many workers at most found places on these nodes: somebody else has the rest."""

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._refuse_if_stopped()
        self.request_resources()
        self._left, self._worked = self._worked or self._left, None
        possible = self._possible(fresh=True)
        if possible < self.scaling_config.min_workers:
            time.sleep(0.5)  # Ray's controller asks again at once, and would burn a core
            return NoopDecision()
        self._started, self._room_since, self._asked = time.monotonic(), None, possible
        self._training = False
        if self._spares:
            self._spares = Prestart()  # the workers that start take what there is
        self._board.forget_workers()
        return ResizeDecision(possible, worker_resources(self.scaling_config))

    def _refuse_if_stopped(self) -> None:
        """Told to stop while no workers run: there is nothing to commit."""
        request = self._board.leave_request()
        if request is not None and request.final:
            raise LeavingError(f"{request.reason}: no workers were running", final=True)

    def make_decision_for_running_worker_group(
        self, worker_group_state: Any, worker_group_status: Any
    ) -> ScalingDecision:
        self.request_resources()
        now = self._worked = time.monotonic()
        if self._train(now) and self._spares:
            self._spares.keep(worker_group_state.workers)
        if now - self._looked >= GROWTH_SECONDS:
            self._looked = now
            self._consider(worker_group_state.num_workers, now)
        return NoopDecision()

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Workers who found no places within the start time-out: fewer next time, while the nodes are the same."""
        super().after_controller_state_update(previous_state, current_state)
        if failed_to_start(current_state):
            fewer = max(self.scaling_config.min_workers, self._asked - 1)
            self._ceiling = (self._usable, fewer)

    def _train(self, now: float) -> bool:
        """Whether the workers are at their steps by now; at first also measured: what a restart costs, from the workers
        before to the first that train."""
        if not self._training:
            signs = self._board.signs().values()
            self._training = any(sign.doing.what == "training" for sign in signs)
            if self._training and self._left is not None:
                self._restart_seconds, self._left = now - self._left, None
        return self._training

    def _consider(self, workers: int, now: float) -> None:
        """Ask the workers to make way for more of them, once the room for more has stood for a while."""
        possible = self._possible(fresh=False)
        if possible <= workers:  # also if what came has gone again
            self._withdraw()
            return
        if self._room_since is None or self._room_since[0] != possible:
            self._room_since = (possible, now)
        expected = max(60.0, now - self._started)
        pays = growth_pays(
            workers, possible, restart_seconds=self._restart_seconds, expected_seconds=expected
        )
        if not pays or now - self._room_since[1] < SETTLE_SECONDS:
            return
        if self._possible(fresh=True) < possible:  # a frozen node is known to be dead only later
            self._withdraw()
            return
        text = f"there is room for {possible} workers instead of {workers}"
        self._board.request_leave(Notice(text))

    def _withdraw(self) -> None:
        if self._room_since is not None:
            self._board.request_leave(None)
        self._room_since = None

    def _possible(self, fresh: bool) -> int:
        """How many workers the cluster could hold, had it nothing else to do; `fresh`: on nodes that respond now."""
        usable = usable_nodes(check=fresh)
        each = worker_resources(self.scaling_config)
        # Without GPUs, workers that fill a node would leave no core to decode with.
        share = 1.0 if self.scaling_config.use_gpu else 0.5
        possible = sum(places_on(node["Resources"], each, share) for node in usable.values())
        self._usable = frozenset(usable)
        if self._ceiling is not None and self._ceiling[0] == self._usable:
            possible = min(possible, self._ceiling[1])
        return min(possible, self.scaling_config.max_workers)
