"""A process that a run stands on is killed, each in a run of its own: the run goes on, or ends with one line and can be resumed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raymat.analysis.compare import diff
from raymat.cli.diff import text
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.drivers import driver
from tests.support.heads import descendants, wait_for
from tests.support.kit import rows

STEPS = 80
FLAGS = [
    "--workers", "1", "--valid-examples", "4", "--valid-interval", "20", "--validation", "beside",
]  # fmt: skip
LINE = re.compile(r"raymat: error: .*(again|resume|goes on)")
"""What happened, and what to do."""


@dataclass(frozen=True)
class Victim:
    """A process below the driver, known by its command line."""

    name: str
    words: str
    """Of its command line."""
    ends: bool
    """Whether the run may end of its death."""
    early: bool = False
    """Whether it is there at the run's start alone: later, tiny batches are all made ahead."""


VICTIMS = [
    Victim("GCS", r"/gcs_server\b", ends=True),
    Victim("raylet", r"/raylet\0", ends=True),
    Victim("dashboard agent", r"^ray::DashboardAgent", ends=True),
    Victim("runtime environment agent", r"^ray::RuntimeEnvAgent", ends=True),
    Victim("board", r"^ray::_Actor", ends=False),
    Victim("barrier of the workers", r"^ray::SynchronizationActor", ends=False),
    Victim("controller", r"^ray::TrainController", ends=True),
    Victim("validation task", r"^ray::_validate", ends=False),
    Victim("read task", r"^ray::ReadMicroBatch", ends=False, early=True),
    Victim("worker", r"^ray::RayTrainWorker", ends=False),
]


def command_lines(pid: int) -> dict[int, str]:
    """Of all processes below one."""
    found = {}
    for child in descendants(pid):
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_text(errors="replace")
        except OSError:
            continue
    return found


def kill_one(process: subprocess.Popen[str], store: Store, victim: Victim) -> float:
    """Kill the victim once the run has committed something, an early one at once; returns when."""

    def ready() -> bool:
        assert process.poll() is None, process.communicate()[1]
        return has(store, "commit", lambda event: event["step"] >= 10)

    if not victim.early:
        wait_for(ready, 240)

    def found() -> int | None:
        assert process.poll() is None, process.communicate()[1]
        seen = command_lines(process.pid)
        return next((p for p, line in seen.items() if re.search(victim.words, line)), None)

    try:
        pid = wait_for(found, 240 if victim.early else 60)
    except AssertionError:
        raise AssertionError(
            sorted(line[:90] for line in command_lines(process.pid).values())
        ) from None
    os.kill(pid, signal.SIGKILL)
    return time.time()


def has(store: Store, kind: str, condition: Callable[[dict[str, object]], bool]) -> bool:
    return any(event["kind"] == kind and condition(event) for event in read_events(store))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("undisturbed")
    with driver(folder, STEPS, *FLAGS) as process:
        _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    return Store.open(str(folder), "run")


def named(victim: Victim) -> Any:
    return pytest.param(victim, id=victim.name.replace(" ", "-"))


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", [named(victim) for victim in VICTIMS])
def test_a_run_outlives_the_death_of_a_process_or_ends_with_one_line_and_resumes(
    victim: Victim, undisturbed: Store, tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path), "run")
    with driver(tmp_path, STEPS, *FLAGS) as process:
        killed = kill_one(process, store, victim)
        said, errors = process.communicate(timeout=300)
    code, seconds = process.returncode, time.time() - killed
    lines = [line for line in errors.splitlines() if line.strip()]
    print(
        f"\nVICTIM | {victim.name} | {outcome(store, code)} | {seconds:.1f} s | {lines[-1] if lines else ''}"
    )
    if code != 0:
        print("\n".join(f"  err: {line[:300]}" for line in lines))
        assert victim.ends
        assert code == 2
        assert LINE.match(lines[-1]), errors
        assert sum(line.startswith("raymat: error") for line in lines) == 1
        assert "Traceback" not in said + errors
        with driver(tmp_path, STEPS, *FLAGS) as again:
            _, errors = again.communicate(timeout=400)
        assert again.returncode == 0, errors
    found = diff(undisturbed.url, store.url)
    assert found.equal, text(found)
    assert rows(store) == rows(undisturbed)


def outcome(store: Store, code: int) -> str:
    attempts = sum(event["kind"] == "start" for event in read_events(store))
    return f"went on, attempts {attempts}" if code == 0 else f"ended with {code}"
