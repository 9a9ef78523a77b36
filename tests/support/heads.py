"""A Ray head of a test's own, as `ray start --head` starts it: it outlives its drivers, and can be killed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

RAY = str(Path(sys.executable).parent / "ray")


class StandingHead:
    """Ports, a temporary folder, a token and an environment that stay while the head itself comes and goes."""

    def __init__(self, folder: str, cpus: int, environment: Mapping[str, str]) -> None:
        self.port, self.dashboard_port, self._cpus = free_port(), free_port(), cpus
        outside = {n: value for n, value in os.environ.items() if not n.startswith("RAY_")}
        # As for a test's own Ray: workers that give way to everything else are stopped for minutes by other tests.
        outside |= {n: value for n, value in os.environ.items() if n == "RAY_worker_niceness"}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = outside | {"RAY_TMPDIR": folder} | token | dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [RAY, "start", "--head", "--block", f"--port={self.port}"]
        command += [f"--dashboard-port={self.dashboard_port}", f"--num-cpus={self._cpus}"]
        # Ray's default for this one is a fixed port: on a machine where another Ray has it, no job would ever start.
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        command += ["--object-store-memory=500000000", "--disable-usage-stats"]
        self._process = subprocess.Popen(
            command,
            # Its end is waited for by nobody who trains: half a minute of grace would only pass.
            env=self.environment | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: listens(self.dashboard_port), 60)

    def node(self) -> tuple[int, str]:
        """Its `ray start` process, and its node's id in hex. The raylet comes after the dashboard."""
        assert self._process is not None
        starter = self._process.pid

        def raylet_node() -> str | None:
            for pid in descendants(starter):
                words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
                if words[0].endswith("/raylet"):
                    ids = [w.partition("=")[2] for w in words if re.match("--node[-_]id=", w)]
                    return ids[0] if ids else None
            return None

        return starter, wait_for(raylet_node, 60)

    def end(self) -> None:
        """Gently: `ray start --block` ends its cluster, and no other, on SIGTERM."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=60)
            self._process = None

    def kill(self) -> None:
        """The machine that the head is on goes: all of its processes at the same moment."""
        assert self._process is not None
        for pid in [*descendants(self._process.pid), self._process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(timeout=60)
        self._process = None


@contextlib.contextmanager
def standing_head(
    cpus: int = 4, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[StandingHead]:
    """A head that runs, with more in its `environment`; what it left is removed.

    Its folder's path is short: Ray's socket paths end at 107 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="rm", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = StandingHead(folder, cpus, environment)
        try:
            head.start()
            yield head
        finally:
            head.end()


def descendants(pid: int) -> list[int]:
    """Children of a process, theirs, and so on."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                text = (entry / "stat").read_text()
                parents[int(entry.name)] = int(text.rpartition(")")[2].split()[1])
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def idle_processes() -> set[int]:
    """Those of the Ray that this process started which wait for something to do."""
    found = set()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::IDLE"):
                found.add(pid)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    """The first true value of `what`, asked for up to `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"nothing came within {seconds} s")
