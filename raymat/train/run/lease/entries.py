"""The objects that contenders for a run's lease write into its storage. The rules are in docs/guarantees.md."""

from __future__ import annotations

import copy
import json
import math
import re
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from raymat.checkpoint.manifest import newer_format
from raymat.storage.fields import Count, Time, parse_fields, parse_object
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import FileInfo, Store
from raymat.train.run.lease.process import Owner

FOLDER = "lease"
FORMAT = 1
"""Of the objects. This one is not written: drivers before the number take an object with a field more for no entry."""
RECORDS = "run"
"""Folder of what each holder has made of `run.json`, under the name of its lease."""
_NAME = re.compile(rf"(?:{FOLDER}|{RECORDS})/(?P<name>(?P<term>\d{{6,}})-[0-9a-f]{{8}})\.json")


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Intervals and limits of the lease, in seconds."""

    renew: float = 5.0
    """Between two renewals of a holder's object."""
    ttl: float = 20.0
    """A contender that was watched for this long and did not renew its object is dead."""
    look: float = 1.0
    """Between two looks of a contender."""
    watch: float = 3.0
    """Between two looks of rank 0."""
    patience: float = 600.0
    """The longest that a holder which was asked to leave may take for its last commit."""


PACE = Pace()


State = Literal["candidate", "holder", "released", "withdrawn", "unreadable"]
"""released: of a holder that has left. withdrawn: of a candidate that gave up where it may not delete."""


@dataclass(frozen=True)
class Entry:
    """A contender's object."""

    name: str
    state: State
    """Of one that is unreadable nothing is known but its name: it must be reckoned with until it stands still."""
    owner: Owner | str
    """The driver; in words if it is unreadable."""
    since: float = 0.0
    """Unix seconds by the owner's clock, for people only; 0 if unknown."""
    renewals: int = 0
    replaces: str | None = None
    """The name of the holder that it asks to leave."""

    @property
    def path(self) -> str:
        """Its path in the run's folder."""
        return path_of(self.name)

    @property
    def term(self) -> tuple[int, str]:
        """What orders all contenders of a run."""
        return term_of(self.name)

    def encode(self) -> bytes:
        """Return the object's bytes; each renewal changes them."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, name: str, data: bytes) -> Entry:
        """Read the object of this name, without fields that are not known here."""
        who = f"a driver whose object {path_of(name)} this raymat cannot read"
        try:
            values = parse_object(data)
            if newer_format(values, FORMAT) is not None:
                who = "a newer raymat"
            elif values.get("format", FORMAT) == FORMAT:
                found = parse_fields(_Stored, values)
                return cls(
                    name, found.state, found.owner, found.since, found.renewals, found.replaces
                )
        except ValueError:
            pass
        return cls(name, "unreadable", who)


@dataclass(frozen=True)
class _Stored:
    """What an entry's object says beside its name."""

    state: Literal["candidate", "holder", "released", "withdrawn"]
    owner: Owner
    since: Time = 0.0
    renewals: Count = 0
    replaces: str | None = None


@dataclass(frozen=True)
class Seen:
    """Another contender's object, as one look found it."""

    entry: Entry
    data: bytes
    modified: float
    """Unix seconds by the storage's clock; 0 if it does not say."""


class OwnEntry:
    """This process's object, and the newest proof by it that the process is alive."""

    def __init__(
        self, store: Store, entry: Entry, ttl: float, *, proved: float = -math.inf
    ) -> None:
        self.store, self.entry, self._ttl = store, entry, ttl
        self.proved = proved
        """When the newest write began that took no longer than `ttl` seconds, on the clock of `boottime`."""

    def write(self, **changes: Any) -> None:
        """Write the object with these fields changed. Raises StorageError."""
        self.entry = replace(self.entry, **changes)
        began = boottime()
        self.store.write(self.entry.path, self.entry.encode())
        # A slower write proves nothing: others may have watched it fail to come.
        if boottime() - began <= self._ttl:
            self.proved = began

    def renew(self) -> None:
        """Write the object with other bytes than before. Raises StorageError."""
        self.write(renewals=self.entry.renewals + 1)

    def silence(self) -> float:
        """Return the seconds since the newest proof."""
        return boottime() - self.proved


def remove_entries(store: Store, entries: list[Entry]) -> None:
    """Remove these objects; where this account may not delete, mark them as those of drivers that have left.

    Raises:
        StorageError: the storage fails.
    """
    store.delete([entry.path for entry in entries])
    if not store.may_delete:
        for entry in entries:
            if entry.state not in ("released", "withdrawn"):
                left: State = "withdrawn" if entry.state == "candidate" else "released"
                store.write(entry.path, replace(entry, state=left).encode())


def path_of(name: str, folder: str = FOLDER) -> str:
    """Return the path of a contender's object in the run's folder, or of its record."""
    return f"{folder}/{name}.json"


def term_of(name: str) -> tuple[int, str]:
    """Return what orders the names of contenders."""
    number, _, word = name.partition("-")
    return int(number), word


def boottime() -> float:
    """Return seconds on a clock that goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def impatient(store: Store, pace: Pace) -> Store:
    """Return the same store, which gives up before a renewal is due again."""
    hasty = copy.copy(store)
    hasty.retry = RetryPolicy(total=pace.renew)
    return hasty


def list_entries(store: Store, folder: str = FOLDER) -> dict[str, FileInfo]:
    """List the objects of all contenders, or the records of all holders, by name."""
    found = ((_NAME.fullmatch(info.path), info) for info in store.list(folder))
    return {match["name"]: info for match, info in found if match}


def name_after(store: Store, others: Iterable[str]) -> str:
    """Return a new name for a contender, larger than `others` and than all holders' that have left a record.

    The records: so that a run whose lease/ was removed does not count from 1 again.
    """
    names = [*others, *list_entries(store, RECORDS)]
    highest = max((term_of(name)[0] for name in names), default=0)
    return f"{highest + 1:06d}-{uuid.uuid4().hex[:8]}"


def read_entries(store: Store, listed: dict[str, FileInfo]) -> list[Seen]:
    """Read the listed objects, without those that were removed meanwhile."""
    found = []
    for name, info in listed.items():
        data = store.try_read(info.path)
        if data is not None:
            found.append(Seen(Entry.decode(name, data), data, info.modified))
    return found


def successors_of(store: Store, name: str, listed: dict[str, FileInfo]) -> list[Entry]:
    """Return who is known to have become holder after `name`."""
    later = {other: info for other, info in listed.items() if term_of(other) > term_of(name)}
    found = [seen.entry for seen in read_entries(store, later)]
    return [entry for entry in found if entry.state in ("holder", "released")]
