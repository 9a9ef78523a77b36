"""The blackboard: one small actor beside the driver, through which driver, controller and workers inform each other.

It holds the newest progress and the lines for the driver's terminal, the request that the workers leave, the workers' signs of
life, why the controller gave up, and the task that validates beside training. Nothing on it is state of the run: a blackboard
that was restarted is empty, and the next progress fills it again.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymat.checkpoint.manifest import CheckpointId
from raymat.cluster.validation_task import ValidationTask
from raymat.errors import first_line
from raymat.train.loop.watchdog import Activity
from raymat.train.observability.event import Event
from raymat.train.observability.progress import Progress
from raymat.train.run.notice import Notice
from raymat.train.validation.interface import Job, ValidationStatus

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_SECONDS = 5.0
MAX_LINES = 10_000
"""More lines of one run are not kept: its events have all."""


@dataclass(frozen=True)
class SignOfLife:
    """Where a worker runs, and what its training thread does."""

    host: str
    node: str
    """Ray's id of the node, in hex."""
    pid: int
    doing: Activity
    heard: float = 0.0
    """When the blackboard got it, in Unix seconds."""


@dataclass(frozen=True)
class Line:
    """A line for the driver to print, and what it is about; None where that is no attempt's, worker's or step's."""

    text: str
    level: str = "info"
    """As logging has it, in small letters."""
    kind: str | None = None
    """The kind of the event that it tells of."""
    attempt: int | None = None
    rank: int | None = None
    step: int | None = None

    @classmethod
    def of(cls, event: Event, attempt: int | None = None, rank: int | None = None) -> Line | None:
        """Return the line of an event that `rank` has written; None if it has none."""
        if event.line is None:
            return None
        about = getattr(event, "step", None)
        return cls(event.line, event.level, event.kind, attempt, rank, about)


@dataclass(frozen=True)
class News:
    """What the driver shows of a run."""

    progress: Progress | None
    lines: list[Line]
    doing: Activity | None
    """What rank 0 did at its last sign of life, or what the next workers lack; None while no worker has given one."""


class _Actor:
    """The actor behind a `Blackboard`."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._lines: list[Line] = []
        self._request: Notice | None = None
        self._signs: dict[int, SignOfLife] = {}
        self._hangs: list[str] = []
        self._lacks: str | None = None
        self._goodput: float | None = None
        self._verdict: str | None = None
        self._validation = ValidationTask()

    def set_progress(self, progress: Progress) -> None:
        self._progress = progress

    def print_line(self, line: Line) -> None:
        if len(self._lines) < MAX_LINES:
            self._lines.append(line)

    def news(self, seen: int) -> News:
        lead = self._signs.get(0)
        doing = lead.doing if lead else None
        if self._lacks is not None:
            doing = Activity(self._lacks, doing.step if doing else 0, time.time())
        return News(self._progress, self._lines[seen:], doing)

    def request_leave(self, notice: Notice | None) -> None:
        # A final request stays, whatever is requested later.
        if self._request is None or not self._request.final:
            self._request = notice

    def leave_request(self) -> Notice | None:
        return self._request

    def forget_workers(self) -> None:
        self.request_leave(None)
        self._signs, self._hangs, self._lacks = {}, [], None

    def set_lack(self, text: str) -> None:
        self._lacks = text

    def sign(self, rank: int, sign: SignOfLife) -> None:
        # By this clock: workers' machines may have others.
        self._signs[rank] = dataclasses.replace(sign, heard=time.time())

    def signs(self) -> dict[int, SignOfLife]:
        return self._signs

    def set_goodput(self, share: float) -> None:
        self._goodput = share

    def goodput(self) -> float | None:
        return self._goodput

    def report_hang(self, text: str) -> None:
        self._hangs.append(text)

    def hangs(self) -> list[str]:
        return self._hangs

    def set_verdict(self, text: str) -> None:
        self._verdict = text

    def verdict(self) -> str | None:
        return self._verdict

    def begin_validation(self, job: Job, claim: dict[str, float], node: str) -> None:
        board = Blackboard(ray.get_runtime_context().current_actor)
        self._validation.begin(job, claim, node, board.sign_validation)

    def sign_validation(self, checkpoint: CheckpointId, who: str) -> None:
        self._validation.sign(checkpoint, who)

    def validation(self) -> ValidationStatus:
        return self._validation.status()

    def end_validation(self) -> None:
        self._validation.end()


class Poll(Generic[T]):
    """A question to the blackboard that is asked over and over, by a thread that must not wait for the answer."""

    def __init__(self, ask: Callable[[], Any], first: T) -> None:
        """`ask` returns Ray's reference to an answer; `first` holds until one has come."""
        self._ask = ask
        self._pending: Any = None
        self.latest = first
        """The newest answer."""
        self.heard = time.monotonic()
        """When it came."""

    def update(self, seconds: float = 0.0) -> T:
        """Return the newest answer, after having waited for `seconds` at most. Raises RayError."""
        if self._pending is None:
            self._pending = self._ask()
        ready, _ = ray.wait([self._pending], timeout=seconds)
        if ready:
            self._pending = None
            self.set(ray.get(ready[0]))
        return self.latest

    def set(self, answer: T) -> None:
        """Replace the newest answer."""
        self.latest, self.heard = answer, time.monotonic()


class Blackboard:
    """A typed handle to the actor; it can be pickled.

    Methods that write return at once, and nothing depends on whether what they wrote arrives, unless they say otherwise.
    Methods that read wait for up to 5 s, and return nothing much (None, an empty list) where no answer comes.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    @classmethod
    def start(cls) -> Blackboard:
        """Start the actor on the driver's own node, where no spot machine takes it away."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)(_Actor)
        return cls(actor.options(scheduling_strategy=here).remote())

    def stop(self) -> None:
        """Kill the actor."""
        ray.kill(self._actor)

    def set_progress(self, progress: Progress) -> None:
        """Show the driver rank 0's newest progress."""
        self._actor.set_progress.remote(progress)

    def print_line(self, line: Line) -> None:
        """Have the driver print a line."""
        self._actor.print_line.remote(line)

    def news(self, seen: int) -> News:
        """Return what is new, with the lines after the first `seen`. Raises RayError."""
        found: News = ray.get(self._actor.news.remote(seen), timeout=ANSWER_SECONDS)
        return found

    def request_leave(self, notice: Notice | None) -> None:
        """Ask the workers to commit and leave; None takes the request back, unless it is final."""
        self._actor.request_leave.remote(notice)

    def leave_request(self) -> Notice | None:
        """Return the request that the workers leave, if there is one."""
        return self._ask(self._actor.leave_request.remote(), None)

    def poll_leave_request(self) -> Poll[Notice | None]:
        """Return the same as a poll."""
        return Poll(self._actor.leave_request.remote, None)

    def forget_workers(self) -> None:
        """Clear what concerns the workers before: others are about to start."""
        self._actor.forget_workers.remote()

    def set_lack(self, text: str) -> None:
        """Say why no workers start, until some do."""
        self._actor.set_lack.remote(text)

    def sign(self, rank: int, sign: SignOfLife) -> None:
        """Show that a worker lives, and what it does."""
        self._actor.sign.remote(rank, sign)

    def signs(self) -> dict[int, SignOfLife]:
        """Return the newest sign of each worker, by rank."""
        return self._ask(self._actor.signs.remote(), {})

    def set_goodput(self, share: float) -> None:
        """Tell rank 0 the run's goodput."""
        self._actor.set_goodput.remote(share)

    def poll_goodput(self) -> Poll[float | None]:
        """Return a poll of the run's goodput; None before it is known."""
        return Poll(self._actor.goodput.remote, None)

    def report_hang(self, text: str) -> None:
        """Say in what a worker hangs; returns when it is written, or after 5 s."""
        self._ask(self._actor.report_hang.remote(text), None)

    def hangs(self) -> list[str]:
        """Return what workers of this start reported to hang in, the first first."""
        return self._ask(self._actor.hangs.remote(), [])

    def set_verdict(self, text: str) -> None:
        """Say why the controller ends the run; returns when it is written, or after 5 s."""
        self._ask(self._actor.set_verdict.remote(text), None)

    def verdict(self) -> str | None:
        """Return why the controller ended the run, None if it did not say."""
        return self._ask(self._actor.verdict.remote(), None)

    def begin_validation(self, job: Job, claim: dict[str, float], node: str) -> None:
        """Start a task that validates, unless it runs already; see `ValidationTask.begin`."""
        self._actor.begin_validation.remote(job, claim, node)

    def sign_validation(self, checkpoint: CheckpointId, who: str) -> None:
        """Show that the task which validates `checkpoint` makes progress; `who`: its process."""
        self._actor.sign_validation.remote(checkpoint, who)

    def poll_validation(self, first: ValidationStatus) -> Poll[ValidationStatus]:
        """Return a poll of how far the task is."""
        return Poll(self._actor.validation.remote, first)

    def end_validation(self) -> None:
        """End the task that validates, if it still runs."""
        self._actor.end_validation.remote()

    @staticmethod
    def _ask(answer: Any, otherwise: T) -> T:
        try:
            found: T = ray.get(answer, timeout=ANSWER_SECONDS)
        except (RayError, TimeoutError) as error:
            log.warning("the blackboard does not answer: %s", first_line(error))
            return otherwise
        return found
