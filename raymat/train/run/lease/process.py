"""The identity of a process, by which another on the same machine can tell whether it still lives."""

from __future__ import annotations

import os
import pwd
import socket
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
DEAD_STATES = "ZX"  # a zombie has ended; only nobody has asked for its exit code yet


@dataclass(frozen=True)
class Owner:
    """A process, for people and for `gone`."""

    host: str
    pid: int
    user: str
    machine: str | None
    """Host, boot and process name space, within which a process id means one process; None if this system does not say."""
    started: int | None
    """Clock ticks from the boot to the process's start: an id is given again, but not at the same time."""

    @classmethod
    def me(cls) -> Owner:
        """Return this process."""
        pid, host = os.getpid(), socket.gethostname()
        return cls(host, pid, _user(), _machine(host), _started(pid))

    @property
    def gone(self) -> bool:
        """Whether the process has certainly ended. Of one on another machine nothing is certain."""
        if self.machine is None or self.machine != _machine(socket.gethostname()):
            return False
        return _started(self.pid) != self.started

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
        return f"{host}/{boot}/{os.readlink(PROC / 'self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When the process started; None where there is no such process, or only a zombie."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return None if fields[0] in DEAD_STATES else int(fields[19])
