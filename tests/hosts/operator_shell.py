"""Whoever calls `ray up` and `ray job`: commands with their environment, and the clock that tells what took how long."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.hosts.needs import SBIN
from tests.hosts.sealed import HOME
from tests.support.heads import listens, wait_for
from tests.support.paths import ROOT

DASHBOARD = 8265
ADDRESS = f"http://127.0.0.1:{DASHBOARD}"


class Clock:
    """Says each thing with the seconds since the beginning, and keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Print one line with its time."""
        line = f"{time.monotonic() - self._began:6.1f} s  {text}"
        self.lines.append(line)
        print(line, flush=True)


class Operator:
    """A shell outside of the cluster, with a home of its own."""

    def __init__(self, cluster: Path, logs: Path) -> None:
        outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), *SBIN]
        self.environment = outside | {
            "HOME": HOME,
            "PATH": os.pathsep.join(path),
            "RAY_AUTH_MODE": "token",
            # With the second version only one of two workers with addresses of their own is started (Ray 2.60).
            "RAY_UP_enable_autoscaler_v2": "0",
        }
        self._cluster, self._logs = cluster, logs

    def run(self, *words: str, more: dict[str, str] | None = None) -> str:
        """Run a command in the project; return what it said. Raises RuntimeError with its end, if its exit code is not 0."""
        with (self._logs / "operator.log").open("a+", encoding="utf-8") as log:
            print(f"$ {' '.join(words)}", file=log, flush=True)
            begin = log.tell()
            done = subprocess.run(
                words, cwd=ROOT, env=self.environment | (more or {}), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )  # fmt: skip
            log.seek(begin)
            said = log.read()
        if done.returncode:
            raise RuntimeError(f"`{' '.join(words)}` ended with {done.returncode}:\n{said[-4000:]}")
        return said

    def ray_up(self) -> None:
        """Make a token and start the cluster."""
        self.run("ray", "get-auth-token", "--generate")
        self.run("ray", "up", "-y", "--no-config-cache", str(self._cluster))

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[None]:
        """Keep `ray dashboard` open."""
        command = ["ray", "dashboard", str(self._cluster)]
        with (self._logs / "dashboard.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )  # fmt: skip
            try:
                wait_for(lambda: listens(DASHBOARD), 60)
                yield
            finally:
                process.kill()
                process.wait()

    def nodes(self) -> dict[str, bool]:
        """Return the addresses of the cluster's machines, each with whether one lives there."""
        token = Path(HOME, ".ray/auth_token").read_text(encoding="utf-8").strip()
        request = urllib.request.Request(
            f"{ADDRESS}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            summary = json.load(response)["data"]["summary"]
        found: dict[str, bool] = {}
        for node in summary:
            state = node["raylet"]
            address = state["nodeManagerAddress"]
            found[address] = found.get(address, False) or state["state"] == "ALIVE"
        return found

    def await_node(self, address: str, alive: bool, seconds: float) -> None:
        """Wait until a machine is in the cluster, or out of it."""

        def there() -> bool:
            try:
                return self.nodes().get(address, False) is alive
            except (urllib.error.URLError, OSError):
                return False

        wait_for(there, seconds)

    def submit(self, name: str, environment: dict[str, str], command: Sequence[str]) -> None:
        """Submit a job, and return at once."""
        self.run(
            *("ray", "job", "submit", "--no-wait", "--submission-id", name, "--address", ADDRESS),
            *("--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": environment})),
            *("--", *command),
        )

    def stop(self, name: str) -> None:
        """Stop a job as `ray job stop` does; return when it has ended."""
        self.run("ray", "job", "stop", name, "--address", ADDRESS)

    def job_log(self, name: str) -> list[str]:
        """Return what a job said."""
        return self.run("ray", "job", "logs", name, "--address", ADDRESS).splitlines()

    def job_status(self, name: str) -> str:
        """Return PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        said = self.run("ray", "job", "status", name, "--address", ADDRESS)
        states = ("SUCCEEDED", "FAILED", "STOPPED", "RUNNING", "PENDING")
        return next(state for state in states if state in said.upper().split("STATUS")[-1])
