"""`raymat events` tells a run's events in words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raymat.analysis.event_words import SENTENCES, line_of, words_of
from raymat.analysis.runs.event_reader import EventReader
from raymat.cli.main import main
from raymat.storage.store import Store
from raymat.train.observability.event_kinds import KINDS
from raymat.train.observability.events import EventLog, read_events
from tests.support.events import EXAMPLES


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_every_kind_of_event_has_words_of_its_own(event: object) -> None:
    stored = event.to_dict()  # type: ignore[attr-defined]
    words = words_of(stored)
    assert words.strip()
    assert "\n" not in words
    assert not words.startswith(f"{stored['kind']} {{")


def test_text_from_storage_steers_no_terminal() -> None:
    notice = {"time": 0.0, "kind": "notice", "step": 1, "deadline": None, "writer": "\x1b[2J"}
    told = line_of(notice | {"reason": "größe 跑\x1b[31m\n\u202egone"})
    assert told.endswith("\\x1b[2J  notice after step 1: größe 跑\\x1b[31m\\n\\u202egone")


def test_output_that_finds_no_space_is_one_line(tmp_path: Path) -> None:
    EventLog.for_rank(Store.open(str(tmp_path), "run"), 1, 0).emit(EXAMPLES[0])
    command = [sys.executable, "-m", "raymat", "events", f"{tmp_path}/run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "raymat: error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("command", ["events", "restarts"])
def test_damaged_lines_are_counted_in_one_line(
    command: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(str(tmp_path), "run")
    EventLog.for_rank(store, 1, 0).emit(EXAMPLES[0])
    store.write("events/a001-rank-00001-torn-00000.jsonl", b'{"time": 1.0, "ki\n\n[7]\n')
    assert main([command, f"{tmp_path}/run"]) == 0
    (record,) = caplog.records
    told = "2 lines of the run's events left out: damaged, or of another raymat"
    assert record.getMessage() == told
    reader = EventReader(store)
    assert (reader.refresh(), len(reader.events), reader.damaged) == (True, 1, 2)


def test_no_sentence_is_kept_for_a_kind_that_does_not_exist() -> None:
    assert KINDS.keys() >= SENTENCES


def test_an_event_has_its_time_attempt_and_writer_before_its_words() -> None:
    commit = {"time": 1795857843.5, "attempt": 3, "writer": "rank-00012", "kind": "commit"}
    commit |= {"checkpoint": "step-000000120-a003", "step": 120, "seconds": 0.41, "stall": 0.012}
    assert line_of(commit | {"bytes": 463008}) == (
        "2026-11-28 09:24:03  attempt 3   rank 12  step-000000120-a003 is committed after 0.4 s, 463.0 kB a worker; "
        "training stood still for 12 ms"
    )


@pytest.mark.parametrize(
    "event",
    [
        {"kind": "landing", "speed": 3},
        {"kind": "commit", "step": 1},
        {"kind": "start", "world": 1, "ranks": 3, "stage": 1, "total_steps": 1, "device": 1},
    ],
)
def test_an_event_of_another_version_is_shown_as_it_is(event: dict[str, object]) -> None:
    fields = {name: value for name, value in event.items() if name != "kind"}
    assert words_of(event) == f"{event['kind']} {json.dumps(fields)}"
    assert line_of(event).startswith("1970-01-01 00:00:00")


@pytest.fixture
def run(tmp_path: Path) -> Store:
    store = Store.open(str(tmp_path), "run")
    for attempt in (1, 2):
        log = EventLog.for_rank(store, attempt, 0)
        for event in EXAMPLES[: 5 * attempt]:
            log.emit(event)
    return store


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(["events", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_all_events_are_told_oldest_first(run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, run.url)
    assert lines[-1] == "15 events of 15"
    assert re.fullmatch(r"....-..-.. ..:..:..  attempt 1   rank 0   process 7 on a drives the run", lines[0])  # fmt: skip
    assert any(line.endswith("1 worker started on a (cpu)") for line in lines)


def test_events_are_chosen_by_kind_attempt_and_age(
    run: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, run.url, "--kind", "launch,start")[-1] == "4 events of 15"
    assert shown(capsys, run.url, "--kind", "launch", "--attempt", "2")[-1] == "1 event of 15"
    assert shown(capsys, run.url, "--since", "1h")[-1] == "15 events of 15"
    assert shown(capsys, run.url, "--since", "0.000001s") == ["0 events of 15"]


def test_json_is_what_is_stored_line_by_line(run: Store, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert [json.loads(line) for line in shown(capsys, run.url, "--json")] == read_events(run)


def test_a_kind_that_no_event_has_is_refused_with_the_nearest(
    run: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["events", run.url, "--kind", "comit"]) == 2
    assert "no event is of kind 'comit': did you mean commit?" in capsys.readouterr().err
