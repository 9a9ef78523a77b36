"""The start of an attempt: it takes a number that none had before, and records who takes part."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from raymat.distributed.collectives import Group
from raymat.errors import RaymatError, StorageError
from raymat.storage.store import Store
from raymat.train.observability.attempt_events import AttemptStarted, Participant
from raymat.train.observability.events import EventLog, next_attempt


@dataclass(frozen=True)
class Attempt:
    """One worker's part in one attempt at a run."""

    number: int
    events: EventLog


def begin_attempt(
    store: Store, group: Group, *, stage: str, total_steps: int, device: str
) -> Attempt:
    """Take the next attempt's number by writing its `start` event, which names every worker.

    Called by all workers; raises on all of them.

    Raises:
        StorageError: the storage cannot be read or written.
    """
    me = Participant(rank=group.world.rank, pid=os.getpid(), host=socket.gethostname())
    start = AttemptStarted(
        world=group.world.size,
        ranks=group.gather(me),
        stage=stage,
        total_steps=total_steps,
        device=device,
    )
    taken: Attempt | None = None
    outcome: int | RaymatError | None = None
    if group.leads:
        try:
            taken = _claim(store, start)
            outcome = taken.number
        except StorageError as error:
            outcome = error
    outcome = group.from_lead(outcome)
    if isinstance(outcome, RaymatError):
        raise outcome
    assert outcome is not None
    return taken or Attempt(outcome, EventLog.for_rank(store, outcome, group.world.rank))


def _claim(store: Store, start: AttemptStarted) -> Attempt:
    number = next_attempt(store)
    events = EventLog.for_rank(store, number, 0)
    events.emit(start, required=True)
    return Attempt(number, events)
