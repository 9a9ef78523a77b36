"""Where runs stand is told from their storage alone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raymat.analysis.runs.event_reader import EventReader
from raymat.analysis.runs.summary import RunReader, RunSummary
from raymat.analysis.runs.survey import survey_runs
from raymat.cli.runs.runs_command import table
from raymat.errors import StorageError
from raymat.storage.store import Store, open_each
from raymat.train.observability.events import EventLog
from raymat.train.run.lease.entries import Entry, Pace
from raymat.train.run.lease.lease import Lease
from raymat.train.run.lease.process import Owner
from tests.support.events import note
from tests.support.paths import ROOT, SUPPORT, TESTS
from tests.support.s3 import S3Server

PACE = Pace(renew=0.1, ttl=1.0, look=0.05, watch=0.1)
ELSEWHERE = dataclasses.replace(Owner.me(), machine=None)
"""This process, but as nobody can look up whether it lives."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A storage with one run of 16 steps, killed at step 10, 9 of which are committed."""
    shutil.copytree(TESTS / "kept/recipe-2/run", tmp_path / "runs/killed")
    return tmp_path / "runs"


def states(root: Path, pace: Pace = PACE) -> dict[str, str]:
    return {each.name: each.state for each in survey_runs(str(root), pace)}


@contextmanager
def held(store: Store) -> Iterator[None]:
    with Lease.acquire(store, pace=PACE, owner=ELSEWHERE):
        yield


def test_a_run_whose_driver_renews_its_lease_trains_and_one_that_released_it_is_stopped(
    root: Path,
) -> None:
    with held(Store.open(str(root), "killed")):
        assert states(root) == {"killed": "training"}
    assert states(root) == {"killed": "stopped"}


def test_a_run_whose_driver_was_killed_is_training_until_its_lease_stands_still_and_then_died(
    root: Path,
) -> None:
    (root / "killed").rename(root / "run")
    command = [sys.executable, str(SUPPORT / "lease_holder.py"), str(root), "elsewhere", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline().startswith("held")
            assert states(root) == {"run": "training"}
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            began = time.monotonic()
            assert states(root) == {"run": "died"}
            assert time.monotonic() - began >= PACE.ttl
        finally:
            holder.kill()


@pytest.mark.parametrize("wrong", [-3.2e7, 3.2e7])
def test_a_storage_whose_clock_is_a_year_off_makes_no_holder_look_dead(
    root: Path, wrong: float
) -> None:
    store = Store.open(str(root), "killed")
    right = store.backend.list
    store.backend.list = lambda folder: ((p, n, at + wrong) for p, n, at in right(folder))  # type: ignore[method-assign]
    with held(Store.open(str(root), "killed")):
        reader = RunReader(store, PACE)
        deadline = time.monotonic() + 20
        while (found := reader.read()).state == "unclear" and time.monotonic() < deadline:
            time.sleep(0.05)
    assert found.state == "training"


def test_another_object_of_the_storage_shows_without_waiting_that_a_holder_died(
    root: Path,
) -> None:
    store = Store.open(str(root), "killed")
    entry = Entry("000001-0123abcd", "holder", ELSEWHERE, time.time())
    store.write(entry.path, entry.encode())
    os.utime(root / "killed" / entry.path, (time.time() - 600, time.time() - 600))
    shutil.copytree(TESTS / "kept/0.1.0/run", root / "other", copy_function=shutil.copyfile)
    assert states(root, Pace()) == {"killed": "died", "other": "stopped"}


def test_what_storage_tells_of_a_run(root: Path) -> None:
    (found,) = survey_runs(str(root))
    assert dataclasses.asdict(found) | {"active": 0, "committed": 0, "goodput": 0} == {
        "name": "killed",
        "url": f"{root}/killed",
        "state": "stopped",
        "reason": "",
        "stage": "base",
        "step": 9,
        "steps": 16,
        "committed": 0,
        "goodput": 0,
        "metric": "loss",
        "best": 0.9062252542533048,
        "best_step": 8,
        "workers": 1,
        "attempts": 1,
        "active": 0,
    }
    assert found.goodput == pytest.approx(0.71, abs=0.01)


def test_a_run_is_complete_until_somebody_makes_it_longer(root: Path) -> None:
    store = Store.open(str(root), "killed")
    log = EventLog.for_rank(store, 1, 0)
    log.emit(note("end", outcome="complete", reason="the run's length", step=16))
    assert states(root) == {"killed": "complete"}
    EventLog.for_driver(store).emit(note("longer", step=16, examples=64))
    assert states(root) == {"killed": "stopped"}


def test_a_folder_that_is_no_run_a_broken_one_and_a_newer_one_are_rows_that_say_so(
    root: Path,
) -> None:
    (root / "pictures/train").mkdir(parents=True)
    (root / "pictures/train/a.png").write_bytes(b"?")
    for name in ("damaged", "headless", "newer", "odd"):
        shutil.copytree(root / "killed", root / name)
    for name, content in {
        "damaged": b'{"format": 3, "run_id": "x", "digest": "sha256:0"}',
        "newer": b'{"format": 99}',
    }.items():
        shutil.rmtree(root / name / "run", ignore_errors=True)
        (root / name / "run.json").write_bytes(content)
    shutil.rmtree(root / "headless/run", ignore_errors=True)
    (root / "headless/run.json").unlink()
    odd = b'{"time": 1, "attempt": "x", "kind": "start", "world": "many"}\n[1]\n\xff\n{"time": "soon"}\n'
    odd += b'{"time": NaN}\n{"time": 1e300}\n'
    (root / "odd/events/a001-rank-00001-0123abcd-00000.jsonl").write_bytes(odd)
    assert states(root) == {
        "damaged": "broken",
        "headless": "broken",
        "newer": "newer",
        "pictures": "no run",
        "killed": "stopped",
        "odd": "stopped",
    }
    shown = table(survey_runs(str(root), PACE), time.time())
    assert f"newer is newer: {root}/newer/run.json has format 99, expected 3: resume it with" in shown  # fmt: skip
    assert "headless is broken: its run.json is missing\n" in shown
    assert shown.endswith("\n6 folders: 2 broken, 1 newer, 1 no run, 2 stopped")


def test_a_table_of_ordinary_runs_fits_80_columns_and_a_long_name_is_cut() -> None:
    run = RunSummary(
        name="portraits-4k-hair-and-hands-refine-mobilenetv2",
        url="",
        state="training",
        stage="refine",
        step=112000,
        steps=180000,
        committed=1000.0,
        goodput=0.971,
        best=0.012345,
        best_step=110000,
    )
    lines = table([run], 1012.0, 80).splitlines()
    assert lines == [
        "run           state     step           goodput  commit    best",
        "portraits-4…  training  112000/180000  97.1%    12 s ago  loss 0.01235 at 110000",
        "1 folder: 1 training",
    ]
    assert max(map(len, lines)) <= 80


def test_names_of_wide_letters_stand_in_columns_and_are_cut_to_the_terminal() -> None:
    runs = [
        RunSummary(name=name, url="", state="training", stage="base")
        for name in ("跑" * 9, "größe")
    ]
    lines = table(runs, 0.0, 52).splitlines()
    assert lines[1:3] == [
        "跑跑跑跑跑跑…  training  0/?   -        -       -",
        "größe          training  0/?   -        -       -",
    ]


def test_events_are_read_again_only_where_they_changed(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    read: list[str] = []
    watched = store.read
    store.read = lambda path: (read.append(path), watched(path))[1]  # type: ignore[method-assign]
    reader = EventReader(store)
    assert not reader.refresh()
    first, second = EventLog.for_rank(store, 1, 0), EventLog.for_rank(store, 1, 1)
    first.emit(note("a"))
    second.emit(note("b"))
    assert reader.refresh()
    assert [event["kind"] for event in reader.events] == ["a", "b"]
    assert len(read) == 2
    assert not reader.refresh()
    second.emit(note("c"))
    assert reader.refresh()
    assert [event["kind"] for event in reader.events] == ["a", "b", "c"]
    assert len(read) == 3


def test_of_too_many_events_the_newest_are_read_and_that_is_known(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    for number in range(3):
        EventLog.for_rank(store, number + 1, 0).emit(note("a", text="x" * 1000))
        time.sleep(0.01)
    reader = EventReader(store, most_bytes=2500)
    reader.refresh()
    assert [event["attempt"] for event in reader.events] == [2, 3]
    assert not reader.whole


def test_storage_that_is_not_there_is_said(
    tmp_path: Path, raymat: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        open_each(str(tmp_path / "nowhere"))
    code, _, errors = raymat("runs", str(tmp_path / "nowhere"))
    assert (code, errors) == (
        2,
        [f"raymat: error: cannot list {tmp_path}/nowhere: it does not exist"],
    )


def test_without_a_url_the_runs_of_the_default_storage_are_listed(
    root: Path, monkeypatch: pytest.MonkeyPatch, raymat: Any
) -> None:
    monkeypatch.chdir(root.parent)
    code, out, _ = raymat("runs")
    assert (code, out[1].split()[0], out[-1]) == (0, "killed", "1 folder: 1 stopped")


def test_a_run_is_no_storage_of_runs(root: Path, raymat: Any) -> None:
    assert raymat("runs", f"{root}/killed") == (
        2,
        [],
        [f"raymat: error: {root}/killed is a run, no storage of runs: raymat watch shows it"],
    )


def test_runs_in_a_bucket_are_listed_as_json(
    s3_server: S3Server, root: Path, raymat: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3_server.store("overview", "first")
    for path in sorted((root / "killed").rglob("*")):
        if path.is_file() and not path.name.startswith(".tmp-"):
            store.write(str(path.relative_to(root / "killed")), path.read_bytes())
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    code, lines, _ = raymat("runs", "s3://overview/runs", "--json")
    assert code == 0
    (found,) = json.loads("\n".join(lines))
    assert (found["name"], found["state"], found["step"]) == ("first", "stopped", 9)
