"""What dead attempts left torn is removed before the next one saves: storage that is full has no other room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import RetentionPolicy, find_abandoned, remove_abandoned
from raymat.train.loop.saving.commits import Retainer
from raymat.train.observability.event import Event
from raymat.train.observability.events import EventLog
from tests.support.events import note
from tests.support.made_run import write_newer

POLICY = RetentionPolicy(keep=3)


def _remove(run: Any, attempt: int) -> list[Event]:
    said: list[Event] = []
    Retainer(run.store, POLICY, attempt, emit=said.append).remove_abandoned()
    return said


def test_a_torn_one_newer_than_all_goes_and_an_event_says_so(local: Any) -> None:
    good = local.commit(10)
    torn = local.commit(20, ranks=1)
    (event,) = _remove(local, 2)
    assert event.to_dict() == {"kind": "delete", "checkpoints": [str(torn)], "torn": True}
    assert event.line == f"removed {torn}: left unfinished by an earlier attempt"
    assert local.names() == [str(good)]
    assert _remove(local, 2) == []


def test_a_half_written_file_alone_goes_at_once(local: Any) -> None:
    good = local.commit(10)
    folder = Path(local.url) / "checkpoints/step-000000020-a001"
    folder.mkdir()
    (folder / ".tmp-1-ab-shard-00000-of-00002.safetensors").write_bytes(b"half")
    assert _remove(local, 2) == []
    assert local.names() == [str(good)]


def test_what_living_attempts_write_stays(local: Any) -> None:
    local.commit(10)
    local.commit(20, attempt=2, ranks=1)
    local.commit(30, attempt=3, ranks=1)
    folder = Path(local.url) / "checkpoints/step-000000020-a002"
    (folder / ".tmp-1-ab-shard").write_bytes(b"half")
    before = local.files()
    assert _remove(local, 2) == []
    assert local.files() == before


def test_damage_is_kept_for_whoever_mends_it(local: Any) -> None:
    local.commit(10)
    lost, undone = local.commit(20), local.commit(30)
    local.store.delete([f"checkpoints/{lost}/shard-00001-of-00002.safetensors"])
    EventLog.for_rank(local.store, 1, 0).emit(note("commit", checkpoint=str(undone)))
    local.store.delete(
        [f"checkpoints/{undone}/manifest-0000{rank}-of-00002.json" for rank in (0, 1)]
    )
    assert _remove(local, 2) == []
    assert local.names()[1:] == [str(lost), str(undone)]
    newer = local.commit(40, attempt=2)
    assert len(_remove(local, 2)) == 1
    assert local.names()[1:] == [str(newer)]


def test_a_newer_raymats_torn_one_stays(local: Any) -> None:
    checkpoint = write_newer(local, 20, "state.json")
    local.store.delete([f"checkpoints/{checkpoint}/manifest-00001-of-00002.json"])
    assert _remove(local, 2) == []
    assert local.names() == [str(checkpoint)]


def test_a_manifest_that_arrives_during_the_removal_leaves_nothing_that_looks_committed(
    local: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good, torn = local.commit(10), local.commit(20)
    late = f"checkpoints/{torn}/manifest-00001-of-00002.json"
    data = local.store.read(late)
    local.store.delete([late])
    delete = local.store.delete

    def arriving(paths: list[str]) -> None:
        delete(paths)
        local.store.write(late, data)
        assert [s.id for s in scan(local.store) if s.state == "committed"] == [good]

    monkeypatch.setattr(local.store, "delete", arriving)
    found = find_abandoned(local.store, scan(local.store), 2, set)
    assert found == [torn]
    remove_abandoned(local.store, found, 2)
    assert newest(local.store, "id")[0] == good  # type: ignore[index]
    monkeypatch.undo()
    assert CheckpointId.parse(str(torn)) in {s.id for s in scan(local.store)}
