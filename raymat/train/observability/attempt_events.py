"""Events of drivers, attempts and workers: who trains the run, what befell them, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from raymat.train.observability.event import DataWait, Event, Rank, Reason, Step


class Participant(TypedDict):
    """A worker of an attempt."""

    rank: int
    pid: int
    host: str


class LastSign(TypedDict, total=False):
    """The last that was heard of a worker; its stack only if it had fallen silent."""

    host: str
    pid: int
    silent: float
    doing: str
    step: int
    since: float
    stack: str


@dataclass(frozen=True, kw_only=True)
class RunLaunched(Event):
    """A driver has taken the run and is about to start workers."""

    kind = "launch"
    pid: Annotated[int, "process of the driver"]
    host: Annotated[str, "host of the driver"]
    lease: Annotated[str, "name of the lease that the driver holds"]
    resumed: Annotated[bool, "whether the run existed before"]
    config: Annotated[dict[str, Any], "the run's configuration"]
    heard: Annotated[
        float | None, "Unix seconds at which a driver before that died was last heard of"
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunExtended(Event):
    """A run that had ended is made longer."""

    kind = "longer"
    step: Step
    examples: Annotated[int, "examples after which it had ended"]

    @property
    def line(self) -> str:
        return f"the run had ended after {self.examples} examples (step {self.step}), and goes on"


@dataclass(frozen=True, kw_only=True)
class DatasetGrown(Event):
    """Files that are new in the dataset belong to the run from now on (`--grow-dataset`)."""

    kind = "grow"
    step: Annotated[int, "completed steps of the newest checkpoint"]
    examples: Annotated[int, "examples of the newest checkpoint"]
    from_example: Annotated[int, "number of the first example that may use them"]
    added: Annotated[dict[str, int], "new files by kind"]
    listing: Annotated[str, "digest of the new listing"]
    valid_since: Annotated[int, "last step before the present validation set"]


@dataclass(frozen=True, kw_only=True)
class DatasetMoved(Event):
    """The run's dataset is read elsewhere from now on: what lies there has the same names and sizes."""

    kind = "move"
    files: Annotated[int, "number of files that were compared"]
    places: Annotated[dict[str, str], "new URL by option: dataset, backgrounds"]

    @property
    def line(self) -> str:
        now = " and ".join(f"--{name} is now {url}" for name, url in self.places.items())
        return (
            f"the dataset has moved: {now}; all {self.files:,} files have the same names and sizes"
        )


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(Event):
    """Workers were started and take the next attempt's number. Written before anything else."""

    kind = "start"
    world: Annotated[int, "workers"]
    ranks: Annotated[list[Participant], "rank, process and host of each worker"]
    stage: Annotated[str, "base or refine"]
    total_steps: Annotated[int, "steps of the whole run"]
    device: Annotated[str, "cpu or cuda"]
    format: Annotated[
        int, "of the events: from 2 on `delete` names what is deleted, before it is"
    ] = 1
    arithmetic: Annotated[
        list[dict[str, str]] | None,
        "what the bits of results depend on: of each worker, one entry if all are alike",
    ] = None


@dataclass(frozen=True, kw_only=True)
class ArithmeticChanged(Event):
    """An attempt computes otherwise than what made the checkpoint that it resumes, or its workers than each other."""

    kind = "arithmetic"
    level = "warning"
    step: Step
    difference: Annotated[str, "what differs, in words"]
    mixed: Annotated[bool, "whether it is between the workers of this attempt"] = False

    @property
    def line(self) -> str:
        if self.mixed:
            return f"the workers have {self.difference}; bits depend on which rank a machine has"
        return f"resumed after step {self.step} on {self.difference}; bits may differ from here on"


@dataclass(frozen=True, kw_only=True)
class AttemptEnded(Event):
    """An attempt is over: rank 0 tells of a complete run, each worker of its own failure or leave."""

    kind = "end"
    outcome: Annotated[str, "complete, failed or left"]
    reason: Annotated[str | None, "complete: what ended the run"] = None
    step: Annotated[int | None, "complete: completed steps"] = None
    replaced: Annotated[int | None, "complete: unreadable images replaced in this attempt"] = None
    substitutes: Annotated[
        int,
        "complete: examples of the run that were trained with a substitute for an unreadable image",
    ] = 0
    waited: Annotated[float | None, "complete: s that training waited for validations"] = None
    data_wait: DataWait = None
    saves: Annotated[dict[str, int] | None, "complete: rank 0's saves by what became of them"] = (
        None
    )
    error: Annotated[str | None, "failed, left: the error in one line"] = None


@dataclass(frozen=True, kw_only=True)
class PreemptionNoticed(Event):
    """The workers have heard that they should leave, or that a notice has changed."""

    kind = "notice"
    level = "warning"
    reason: Reason
    deadline: Annotated[float | None, "Unix seconds until which they may stay, if it is known"]
    step: Step

    @property
    def line(self) -> str:
        return f"notice after step {self.step}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class PreemptionWithdrawn(Event):
    """A notice does not hold any more, and training goes on."""

    kind = "notice_withdrawn"
    reason: Annotated[str, "the reason of the notice"]
    step: Step


@dataclass(frozen=True, kw_only=True)
class WorkersLeft(Event):
    """The workers have followed a notice: they saved what they could, and leave."""

    kind = "leave"
    reason: Annotated[str, "the reason of the notice"]
    step: Step
    committed: Annotated[int, "step of the newest committed checkpoint"]
    data_wait: DataWait = None

    @property
    def line(self) -> str:
        return f"the workers leave after step {self.step}, step {self.committed} is committed"


@dataclass(frozen=True, kw_only=True)
class WorkerStuck(Event):
    """A worker's training thread has not moved for `--stuck-after`; its process ends."""

    kind = "stuck"
    level = "warning"
    rank: Rank
    what: Annotated[str, "what it was doing, as in waiting for a batch"]
    step: Step
    since: Annotated[float, "Unix seconds at which it began that"]
    stack: Annotated[str, "where in the code, a line a frame, innermost last"]

    @property
    def line(self) -> str:
        return (
            f"rank {self.rank} stands still {self.what} after step {self.step}; "
            "its stack is in the events"
        )


@dataclass(frozen=True, kw_only=True)
class RoomChanged(Event):
    """The cluster holds room for another number of workers than before, or it is counted for the first time."""

    kind = "room"
    workers: Annotated[
        int, "that would find a place, if nothing else ran; at most those that the run may have"
    ]
    least: Annotated[int, "workers that the run needs"]


@dataclass(frozen=True, kw_only=True)
class MachineLost(Event):
    """A machine of the cluster is gone, with or without workers: what it decoded is made again elsewhere."""

    kind = "machine_lost"
    level = "warning"
    node: Annotated[str, "Ray's id of it, in hex"]
    ip: Annotated[str, "its address"]
    reason: Annotated[str, "why Ray's head took it for dead"]
    ranks: Annotated[list[int], "workers that ran there; none if it only decoded"]
    still: Annotated[
        float, "longest time without a step then, in s; that of a step if nothing stood still"
    ]

    @property
    def loss(self) -> str:
        """The line for the moment at which it is seen."""
        had = f"with rank {', '.join(map(str, self.ranks))}" if self.ranks else "which only decoded"
        return f"{self._name}, {had}, is lost: {self.reason}"

    @property
    def line(self) -> str:
        return f"{self._name} was lost: training stood still for {self.still:.1f} s"

    @property
    def _name(self) -> str:
        return f"machine {self.ip} (node {self.node[:8]})"


@dataclass(frozen=True, kw_only=True)
class WorkersFailed(Event):
    """Workers raised an error or died; all are started anew."""

    kind = "failure"
    level = "warning"
    ranks: Annotated[dict[str, str], "by rank: kind and first line of the error"]
    last: Annotated[dict[str, LastSign], "by rank: the last sign of life"]
