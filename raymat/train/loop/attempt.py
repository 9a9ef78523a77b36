"""One attempt at a run: its number, what every part of the loop needs to know, and how its end is recorded."""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from raymat.checkpoint.manifest import Origin
from raymat.config.run import RunConfig, to_dict
from raymat.config.settled import precision_on
from raymat.distributed.collectives import Group
from raymat.errors import RaymatError, first_line
from raymat.storage.store import Store
from raymat.train.loop.interfaces import Host, TrainableRun, Worker
from raymat.train.loop.state import ResumeContract
from raymat.train.loop.watchdog import Activity, Heartbeat, Watchdog
from raymat.train.observability.attempt_events import (
    AttemptEnded,
    AttemptStarted,
    Participant,
    WorkerStuck,
)
from raymat.train.observability.deletions import EVENTS_FORMAT
from raymat.train.observability.event import Event
from raymat.train.observability.events import EventLog, claim_attempt
from raymat.train.observability.services.service_logger import LoggedRun
from raymat.train.run.arithmetic import Arithmetic, arithmetic_here
from raymat.train.run.notice import LeavingError
from raymat.train.run.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One worker's view of one attempt at a run; nothing in it changes until the attempt ends."""

    run: TrainableRun
    config: RunConfig
    """The run's, with the precision for this device."""
    schedule: Schedule
    store: Store
    group: Group
    device: torch.device
    origin: Origin
    """Names this attempt in all that it saves; equal on all workers."""
    events: EventLog
    heartbeat: Heartbeat
    arithmetic: Arithmetic
    """What the last bits of this attempt's results depend on."""
    environment: Mapping[str, str]
    """Of this process."""

    @property
    def number(self) -> int:
        """Its number among the run's attempts."""
        return self.origin.attempt

    @property
    def logged(self) -> LoggedRun:
        """What services are told of the run."""
        return LoggedRun(
            run_id=self.run.run_id,
            name=self.config.name,
            config=to_dict(self.config),
            store=self.store,
            environment=self.environment,
            emit=self.events.emit,
        )

    @property
    def contract(self) -> ResumeContract:
        """What a checkpoint must have been made under for this attempt to resume it."""
        run = self.run
        return ResumeContract(self.config, run.listing_digest, run.order.lineage, self.arithmetic)

    def emit(self, event: Event) -> None:
        """Write an event that all workers know of: once, by rank 0."""
        if self.group.leads:
            self.events.emit(event)

    def record_activity(self, what: str, step: int | None = None) -> None:
        """Tell the watchdog what the training thread begins. `step`: completed steps; default: as before."""
        self.heartbeat.record_activity(what, step)


def begin_attempt(run: TrainableRun, worker: Worker, store: Store, host: Host) -> Attempt:
    """Take the next attempt's number. Called by all workers; raises on all of them.

    Sets this process's number of threads, which the last bits of every sum depend on.

    Raises:
        ConfigError: the run cannot be trained. StorageError: the storage cannot be read or written.
        LeaseLostError: another driver has the run.
    """
    config, device = run.config, worker.device
    schedule = Schedule.of(config, run.order)
    precision = precision_on(device.type, config.optim.precision)
    torch.set_num_threads(config.workers.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = Group(worker.world, device)
    me = Participant(rank=worker.world.rank, pid=os.getpid(), host=socket.gethostname())
    assert config.data.recipe is not None, "a run's recipe is settled before it is trained"
    facts = arithmetic_here(device, precision, config.data.recipe, worker.environment)
    arithmetic = Arithmetic.of(group.gather(facts))
    start = AttemptStarted(
        world=worker.world.size,
        ranks=group.gather(me),
        stage=config.stage,
        total_steps=schedule.total_steps,
        device=device.type,
        format=EVENTS_FORMAT,
        arithmetic=arithmetic.store(),
    )
    origin, events = _claim_number(run.run_id, store, group, host, start)
    return Attempt(
        run=run,
        config=dataclasses.replace(
            config, optim=dataclasses.replace(config.optim, precision=precision)
        ),
        schedule=schedule,
        store=store,
        group=group,
        device=device,
        origin=origin,
        events=events,
        heartbeat=Heartbeat(),
        arithmetic=arithmetic,
        environment=worker.environment,
    )


@contextmanager
def supervise(attempt: Attempt, host: Host) -> Iterator[None]:
    """Watch the training thread in the block, and write an `end` event for whatever ends it before its time."""
    events, rank = attempt.events, attempt.group.world.rank
    host.attempt_began(attempt.number)
    events.write_in_background(host.event)
    host.register_heartbeat(attempt.heartbeat)

    def on_stuck(activity: Activity) -> None:
        try:
            events.emit(WorkerStuck(rank=rank, **dataclasses.asdict(activity)))
            events.close()  # before the host ends this process
        finally:  # an event that cannot be told must not leave the worker hanging
            host.stuck(activity)

    try:
        limit = attempt.config.workers.stuck_after.seconds
        with Watchdog(attempt.heartbeat, limit, on_stuck):
            yield
    except LeavingError as error:
        events.emit(AttemptEnded(outcome="left", error=error.line))
        raise
    except BaseException as error:
        text = error.line if isinstance(error, RaymatError) else first_line(error)
        events.emit(AttemptEnded(outcome="failed", error=f"{type(error).__name__}: {text}"))
        raise
    finally:
        events.close()


def _claim_number(
    run_id: str, store: Store, group: Group, host: Host, start: AttemptStarted
) -> tuple[Origin, EventLog]:
    logs: list[EventLog] = []

    def claim() -> Origin:
        number, log = claim_attempt(store, start)
        logs.append(log)
        # Afterwards: a successor then sees this number, or this attempt sees the successor.
        host.require_lease()
        return Origin(run_id, number, secrets.token_hex(8))

    origin = group.on_lead(claim)
    return origin, logs[0] if logs else EventLog.for_rank(store, origin.attempt, group.world.rank)
