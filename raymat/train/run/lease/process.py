"""The identity of a process, by which another on the same machine can tell whether it still lives."""

from __future__ import annotations

import os
import pwd
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from msgspec import Meta

PROC = Path("/proc")
Pid = Annotated[int, Meta(ge=1, lt=2**31)]
DEAD_STATES = "ZX"  # a zombie has ended; only nobody has asked for its exit code yet


@dataclass(frozen=True)
class Owner:
    """A process, for people and for `gone`."""

    host: str
    pid: Pid
    user: str
    machine: str | None = None
    """Host, boot and process name space, within which a process id means one process; None if this system does not say."""
    started: int | None = None
    """Clock ticks from the boot to the process's start: an id is given again, but not at the same time. None if unknown."""

    @classmethod
    def me(cls) -> Owner:
        """Return this process."""
        pid, host = os.getpid(), socket.gethostname()
        stat = _stat(pid)
        return cls(host, pid, _user(), _machine(host), stat.started if stat else None)

    @property
    def gone(self) -> bool:
        """Whether the process has certainly ended. Of one on another machine nothing is certain."""
        if self.machine is None or self.machine != _machine(socket.gethostname()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it lives, and is another user's
            pass
        # Where /proc hides it (hidepid, for one) the id may be another process's by now; but that cannot be told.
        stat = _stat(self.pid)
        return stat is not None and (stat.dead or self.started not in (None, stat.started))

    def __str__(self) -> str:
        return f"pid {self.pid} of {self.user} on host {self.host}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _machine(host: str) -> str | None:
    """Name the machine. Two containers may have one host name: their process name spaces differ."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink(PROC / "self/ns/pid")
        # A /proc that was mounted for another name space counts other processes.
        mine = os.readlink(PROC / "self") == str(os.getpid())
    except OSError:
        return None
    return f"{host}/{boot}/{space}" if mine else None


class _Stat(NamedTuple):
    """What /proc says of a process."""

    dead: bool
    started: int


def _stat(pid: int) -> _Stat | None:
    """Read a process's state; None where /proc does not show it."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return _Stat(fields[0] in DEAD_STATES, int(fields[19]))
