"""The driver or the head dies, and the same command is given again: the run goes on as if nothing had been."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymat.analysis.compare import diff
from raymat.cli.diff import text
from raymat.cluster.driver.launch import fit
from raymat.config.flags import parse_run
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from tests.support.heads import RAY, StandingHead, standing_head
from tests.support.heads import wait_for as wait_until
from tests.support.kit import rows, starts, wait_for
from tests.support.paths import ROOT

PROJECT = ROOT
INTERVAL = 7
FLAGS = [
    "--name", "run", "--synthetic", "64", "--backbone", "mobilenetv2", "--resolution", "48", "--crop", "32:48",
    "--batch-size", "8", "--device", "cpu", "--valid-examples", "0", "--log-loss-interval", "1",
    "--checkpoint-interval", str(INTERVAL), "--epoch-examples", "1000000", "--workers", "2",
]  # fmt: skip


@pytest.fixture
def head() -> Iterator[StandingHead]:
    with standing_head() as head:
        yield head


def drive(head: StandingHead, storage: Path, steps: int, *more: str) -> subprocess.Popen[str]:
    """jobs/base.py in a process of its own, on the head's cluster."""
    command = [sys.executable, str(PROJECT / "jobs" / "base.py"), *FLAGS, *more]
    return subprocess.Popen(
        [*command, "--storage", str(storage), "--steps", str(steps)],
        env=head.environment | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def newest_commit(store: Store) -> int:
    return max((e["step"] for e in read_events(store) if e["kind"] == "commit"), default=0)


def assert_undisturbed(store: Store, folder: Path, steps: int) -> None:
    """Every step once, and each bit that of a run that nobody touched."""
    config = parse_run("base", [*FLAGS, "--storage", str(folder), "--steps", str(steps)])
    fit(config)
    whole = Store.open(config.storage, config.name)
    assert rows(store) == rows(whole)
    assert [row[0] for row in rows(whole)] == list(range(1, steps + 1))
    found = diff(whole.url, store.url)
    assert found.equal, text(found)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_driver_killed_at_five_random_moments_and_given_again_changes_no_bit(
    head: StandingHead, tmp_path: Path, cluster: None
) -> None:
    steps, draws = 300, random.Random(21)
    store = Store.open(str(tmp_path / "killed"), "run")
    # Before there are workers: the lease, the listing, their start; or in the middle of training.
    for number, trains in enumerate((True, False, True, True, False)):
        begun = len(starts(store))
        driver = drive(head, tmp_path / "killed", steps)
        if trains:
            wait_for(store, "first_step", lambda event, n=begun: event["attempt"] > n)  # type: ignore[misc]
        moment = draws.uniform(4, 14) if trains else draws.uniform(0, 8)
        time.sleep(moment)
        committed = newest_commit(store)
        assert driver.poll() is None, driver.communicate()[1]
        driver.kill()
        driver.communicate()
        since = "the first step" if trains else "its start"
        print(
            f"driver {number + 1} killed {moment:.1f} s after {since}: step {committed} committed"
        )
    last = drive(head, tmp_path / "killed", steps)
    errors = last.communicate(timeout=400)[1]
    assert last.returncode == 0, errors
    restores = [event["step"] for event in read_events(store) if event["kind"] == "restore"]
    print(f"resumed from {restores}")
    assert restores == sorted(restores)
    assert_undisturbed(store, tmp_path / "undisturbed", steps)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_killed_head_ends_the_driver_and_the_same_command_goes_on_when_it_is_back(
    head: StandingHead, tmp_path: Path, cluster: None
) -> None:
    store = Store.open(str(tmp_path / "killed"), "run")
    driver = drive(head, tmp_path / "killed", 10_000)
    wait_for(store, "commit", lambda event: event["step"] >= 20)
    head.kill()
    killed, reached = time.monotonic(), max(row[0] for row in rows(store))
    errors = driver.communicate(timeout=300)[1]
    lines = errors.strip().splitlines()
    print(
        f"the driver ended after {time.monotonic() - killed:.0f} s with {driver.returncode}: {lines[-1]}"
    )
    assert driver.returncode not in (0, None)
    assert lines[-1].startswith("raymat: error: the head of the Ray cluster, "), errors
    assert f":{head.port}, does not answer any more: " in lines[-1], errors
    assert "Traceback" not in errors
    head.start()
    steps = newest_commit(store) + 30
    again = drive(head, tmp_path / "killed", steps)
    errors = again.communicate(timeout=300)[1]
    assert again.returncode == 0, errors
    (restored,) = [event["step"] for event in read_events(store) if event["kind"] == "restore"]
    assert restored >= reached - INTERVAL
    assert_undisturbed(store, tmp_path / "undisturbed", steps)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_machine_whose_ray_is_told_to_end_commits_first(
    head: StandingHead, tmp_path: Path
) -> None:
    """SIGTERM to `ray start --block`, as a container that is stopped gets it."""
    store = Store.open(str(tmp_path), "run")
    command = [RAY, "start", f"--address={head.address}", "--block", "--num-cpus=4"]
    node = subprocess.Popen(
        [*command, "--object-store-memory=300000000"],
        env=head.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    driver = None
    try:
        time.sleep(8)
        driver = drive(head, tmp_path, 10_000, "--workers", "1:2")
        wait_for(store, "commit", lambda event: event["step"] >= 10)
        node.terminate()
        wait_for(store, "first_step", lambda event: event["attempt"] == 2)
        leaves = [event for event in read_events(store) if event["kind"] == "leave"]
        print(f"left {leaves}, workers {[start['world'] for start in starts(store)]}")
        assert leaves[0]["committed"] == leaves[0]["step"]
        (restored,) = [event["step"] for event in read_events(store) if event["kind"] == "restore"]
        assert restored == leaves[0]["step"]
        wait_until(lambda: node.poll() is not None, 60)
    finally:
        node.kill()
        if driver is not None:
            driver.send_signal(signal.SIGTERM)
            driver.communicate(timeout=60)
