"""What contenders for a run write into storage to have its lease, and how it is read. The rules are in `lease.py`."""

from __future__ import annotations

import copy
import json
import re
import time
from dataclasses import asdict, dataclass
from typing import Literal

from raymat.storage.retry import RetryPolicy
from raymat.storage.store import FileInfo, Store
from raymat.train.run.lease.process import Owner

FOLDER = "lease"
_NAME = re.compile(rf"{FOLDER}/(?P<name>(?P<term>\d{{6,}})-[0-9a-f]{{8}})\.json")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often things are looked at, in seconds."""

    renew: float = 5.0
    """A holder renews its object so often."""
    ttl: float = 20.0
    """Who was watched for so long and did not renew is dead."""
    stale: float = 300.0
    """So much older by the storage's clock: dead at once. Storages whose machines' clocks differ by more do not work."""
    look: float = 1.0
    """A contender looks so often."""
    watch: float = 3.0
    """Rank 0 looks so often."""
    patience: float = 600.0
    """A holder that was asked to leave may take so long for its last commit."""


PACE = Pace()


@dataclass(frozen=True)
class Entry:
    """A contender's object."""

    name: str
    state: Literal["candidate", "holder", "released"]
    owner: Owner
    since: float
    """Unix seconds, by its own clock, for people only."""
    renewals: int = 0
    replaces: str | None = None
    """The holder that it asks to leave."""

    @property
    def path(self) -> str:
        """Where it lies in the run's folder."""
        return path_of(self.name)

    @property
    def term(self) -> tuple[int, str]:
        """Orders all contenders of a run."""
        return term_of(self.name)

    def encode(self) -> bytes:
        """The object's bytes: other ones after each renewal."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def try_decode(cls, data: bytes) -> Entry | None:
        """None for what is no entry."""
        try:
            values = json.loads(data)
            return cls(**values | {"owner": Owner(**values["owner"])})
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Seen:
    """Another's object, at one look."""

    entry: Entry
    data: bytes
    modified: float
    """Unix seconds by the storage's clock; 0: it does not say."""


def path_of(name: str) -> str:
    """The path of a contender's object in the run's folder."""
    return f"{FOLDER}/{name}.json"


def term_of(name: str) -> tuple[int, str]:
    """What orders the names of contenders."""
    number, _, word = name.partition("-")
    return int(number), word


def boottime() -> float:
    """Seconds, on a clock that goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def impatient(store: Store, pace: Pace) -> Store:
    """The same store, which gives up before a renewal is due again."""
    hasty = copy.copy(store)
    hasty.retry = RetryPolicy(total=pace.renew)
    return hasty


def list_entries(store: Store) -> dict[str, FileInfo]:
    """The objects of all contenders, by name."""
    found = ((_NAME.fullmatch(info.path), info) for info in store.list(FOLDER))
    return {match["name"]: info for match, info in found if match}


def read_entries(store: Store, listed: dict[str, FileInfo]) -> list[Seen]:
    """What lies in them; without those that were removed meanwhile, and what is no entry."""
    found = []
    for info in listed.values():
        data = store.try_read(info.path)
        entry = None if data is None else Entry.try_decode(data)
        if data is not None and entry is not None:
            found.append(Seen(entry, data, info.modified))
    return found


def successors_of(store: Store, name: str, listed: dict[str, FileInfo]) -> list[Entry]:
    """Who became holder after `name`, or was it."""
    later = {other: info for other, info in listed.items() if term_of(other) > term_of(name)}
    return [seen.entry for seen in read_entries(store, later) if seen.entry.state != "candidate"]
