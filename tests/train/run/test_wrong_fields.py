"""JSON objects in storage whose values are not what they should be: each kind has one outcome, and none is a traceback."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymat.checkpoint.manifest import CheckpointId, FileEntry, Manifest, share_names
from raymat.checkpoint.state_dict import parse_state, require_state
from raymat.cli.main import main
from raymat.config.run import RunConfig, from_dict, to_dict
from raymat.data.dataset.listing import Files, Listing, Split
from raymat.data.lineage import Lineage
from raymat.errors import CheckpointError, ConfigError, DataError, StorageError
from raymat.storage.digest import seal
from raymat.storage.store import Store
from raymat.train.observability.events import read_events
from raymat.train.observability.metrics_log import MetricsLog, read_metrics, segment_path
from raymat.train.optim.lr_schedule import RateState
from raymat.train.run.extension import position_of
from raymat.train.run.lease.entries import Entry, Pace
from raymat.train.run.lease.lease import Lease
from raymat.train.run.lease.process import Owner
from raymat.train.run.run_file import read_run
from raymat.train.validation.criteria import validations_of
from raymat.train.validation.evaluator import ValidationResult
from raymat.train.validation.result import StoredResult
from tests.support.events import EXAMPLES
from tests.support.kit import tiny

WRONG: list[Any] = [
    None,
    True,
    -1,
    2**70,
    0.5,
    float("nan"),
    "",
    "x",
    "\ud800",
    [],
    [1],
    {},
    {"a": []},
]
"""For any value: of the types that JSON has, and the values at their ends."""
DEEP = b"[" * 100_000
BRIEF = Pace(renew=0.2, ttl=2.0, look=0.1, watch=0.1)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in an object, however deep."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from places(each, (*path, key))


def variants(
    content: dict[str, Any], wrongs: Sequence[Any] = (*WRONG, KeyError)
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The object with each value replaced by every wrong one, or gone; and with a key more."""
    for place in places(content):
        for wrong in wrongs:
            changed = copy.deepcopy(content)
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            if wrong is KeyError:
                del holder[place[-1]]
            else:
                holder[place[-1]] = wrong
            if json.dumps(changed) != json.dumps(content):
                yield f"{place} = {wrong!r}", changed


def outcome(read: Callable[[], Any]) -> Any:
    """What is read, or the line by which it is refused."""
    try:
        return read()
    except StorageError as error:
        return error.line


def encode(content: Any) -> bytes:
    return json.dumps(content).encode()


ENTRY = {
    "name": "000001-0a0a0a0a", "state": "holder", "since": 1.0, "renewals": 3, "replaces": None,
    "owner": asdict(Owner("elsewhere", 12, "me", "machine", 5)),
}  # fmt: skip
OPTIONAL = {"name", "since", "renewals", "replaces", "machine", "started"}


def test_a_lease_object_with_a_wrong_field_is_unreadable_and_nothing_else() -> None:
    for what, content in variants(ENTRY):
        entry = Entry.decode("000001-0a0a0a0a", encode(content))
        assert entry.name == "000001-0a0a0a0a", what
        assert entry.state in ("holder", "candidate", "released", "withdrawn", "unreadable"), what
        assert isinstance(entry.owner, Owner) == (entry.state != "unreadable"), what
        if isinstance(entry.owner, Owner):
            assert isinstance(entry.owner.gone, bool), what
            assert type(entry.owner.pid) is type(entry.renewals) is int, what
    for data in (b"", b"[]", b"1", b"\xff", DEEP, encode(ENTRY | {"format": "1"})):
        assert Entry.decode("000001-0a0a0a0a", data).state == "unreadable", data[:20]
    plain = Entry.decode("000001-0a0a0a0a", encode(ENTRY | {"more": [1]}))
    assert (plain.state, plain.renewals) == ("holder", 3)


@pytest.mark.parametrize(
    "wrong",
    [{"owner": {"host": [], "pid": "x", "user": None}}, {"since": "now"}],
    ids=str,
)  # fmt: skip
def test_a_driver_waits_for_an_object_with_wrong_fields_until_it_stood_still(
    tmp_path: Path, wrong: dict[str, Any]
) -> None:
    store = Store.open(str(tmp_path), "run")
    store.write("lease/000001-0a0a0a0a.json", encode(ENTRY | wrong))
    said: list[str] = []
    with Lease.acquire(store, pace=BRIEF, say=said.append) as lease:
        assert lease.name.startswith("000002-")
    assert len(said) == 1
    assert said[0].startswith(
        "the run is held by a driver whose object lease/000001-0a0a0a0a.json this raymat cannot read"
    )


def run_content() -> dict[str, Any]:
    lineage = Lineage.from_dict(
        {
            "eras": [{"end": 8, "pairs": 4, "backgrounds": 4, "listing": "a"}],
            "ends": [8],
            "valid_since": 0,
        }
    )
    return {
        "run_id": "0" * 32, "created": "2026-01-01T00:00:00Z", "versions": {"raymat": "0.1.0"},
        "config": {"stage": "base"}, "past": lineage.to_dict(),
        "listing": {"synthetic": 8, "digest": "synthetic-8"}, "lease": "000001-0a0a0a0a",
    }  # fmt: skip


@pytest.mark.parametrize("number", [1, 3])
def test_a_run_file_with_a_wrong_field_is_damaged(number: int) -> None:
    memory = Store.open("memory://fields", "run")
    content = run_content() | {"format": number}
    sealed: Callable[[Any], Any] = seal if number == 3 else dict
    memory.write("run.json", encode(sealed(content)))
    assert read_run(memory) == content
    memory.write("run.json", encode(sealed(content | {"more": 1})))
    assert read_run(memory) == content | {"more": 1}
    needed = ("run_id", "config", "listing", "format")
    for what, changed in variants(content):
        memory.write("run.json", encode(sealed(changed)))
        found = outcome(lambda: read_run(memory))
        if isinstance(found, str):
            assert "run.json is damaged" in found or "run.json has format" in found, what
            continue
        assert found is not None, what
        assert all(name in found for name in needed), what
        assert isinstance(found["run_id"], str), what
    for data in (b"", b"[]", b"1", b"\xff", DEEP):
        memory.write("run.json", data)
        with pytest.raises(StorageError, match=r"run\.json is damaged"):
            read_run(memory)


CHECKPOINT = CheckpointId(5, 1)
RESULT = StoredResult(ValidationResult(0.5, {"mse": 0.25, "sad": None}, 6, "sha256:1"), "loop", 1.0)


def test_a_result_of_a_validation_with_a_wrong_field_is_none() -> None:
    values = json.loads(RESULT.encode("r", CHECKPOINT))
    del values["digest"]
    more = encode(seal(values | {"more": 1}))
    assert StoredResult.decode(more, "r", CHECKPOINT) == RESULT
    for what, changed in variants(values):
        try:
            found = StoredResult.decode(encode(seal(changed)), "r", CHECKPOINT)
        except CheckpointError:
            continue
        assert isinstance(found.found.count, int), what
        assert isinstance(found.found.metrics, dict), what
    for data in (b"", b"[]", b"1", b"\xff", DEEP):
        with pytest.raises(CheckpointError):
            StoredResult.decode(data, "r", CHECKPOINT)


def test_a_manifest_with_a_wrong_field_is_damaged() -> None:
    files = tuple(FileEntry(name, 5, "sha256:" + "0" * 64) for name in share_names(0, 1))
    good = Manifest("r", CHECKPOINT, 0, 1, files, "word")
    content = json.loads(good.to_json())
    del content["digest"]
    for what, changed in variants(content):
        try:
            found = Manifest.from_json(encode(seal(changed)))
        except CheckpointError:
            continue
        raise AssertionError(f"{what}: {found}")
    for data in (b"", b"[]", b"1", b"\xff", DEEP):
        with pytest.raises(CheckpointError):
            Manifest.from_json(data)


def test_a_training_state_with_a_wrong_field_is_damaged_and_one_that_lacks_a_field_is_not_resumed() -> (
    None
):
    extra = {
        "format": 1, "step": 5, "cursor": {"version": 1, "next_example": 40}, "bad_steps": 0, "substitutes": 0,
        "schedule": {"format": 2, "cosine_examples": None, "reductions": 0, "reductions_before": 0},
        "scaler": {"scale": 1.0, "good_steps": 5}, "ema": {"updates": 5}, "pending_validation": None,
        "validations": [{"step": 5, "loss": 0.5, "metrics": {"sad": None}}], "config": {},
        "listing_digest": "a", "past": None, "stopped": None, "arithmetic": [{"torch": "2"}], "channels_last": False,
    }  # fmt: skip
    config = to_dict(tiny("base", "/x", "run"))
    assert position_of(extra | {"config": config}, 64).examples == 40
    for what, changed in variants(extra):
        if changed.get("config") == {}:
            changed["config"] = config
        try:
            found = parse_state(CHECKPOINT, encode({"format": 1, "step": 5, "extra": changed}))
            position = position_of(found, 64)
            require_state(found)
            validations = validations_of(found)
            RateState.load_state_dict(found["schedule"])
        except (StorageError, ConfigError, DataError):
            continue
        assert type(position.step) is type(position.examples) is int, what
        assert all(type(each.step) is int for each in validations), what
    for data in (b"", b"[]", b"1", b"\xff", DEEP, b'{"format": 1, "step": 5, "extra": 5}'):
        with pytest.raises(CheckpointError, match=r"step-000000005-a001 (is damaged|has state)"):
            parse_state(CHECKPOINT, data)


def test_a_listing_with_a_wrong_field_is_damaged() -> None:
    none = Files("train/fgr", [], [], np.zeros(0, np.uint8), np.zeros(0, np.int64))
    good = Listing.of("/a", "/b", Split(none, none, none), Split(none, none, none))
    head, meta, rest = zlib.decompress(good.to_bytes()).split(b"\n", 2)
    for what, changed in variants(json.loads(head)):
        data = zlib.compress(b"\n".join([encode(changed), meta, rest]))
        try:
            found = Listing.from_bytes(data)
        except DataError:
            continue
        assert isinstance(found.dataset_url, str), what
        assert isinstance(found.backgrounds_url, str), what
    for what, changed in variants(json.loads(meta)):
        content = b"\n".join([encode(changed), rest])
        described = json.loads(head) | {"digest": hashlib.sha256(content).hexdigest()}
        with contextlib.suppress(DataError):
            found = Listing.from_bytes(zlib.compress(b"\n".join([encode(described), content])))
            assert isinstance(found, Listing), what


def test_a_row_of_metrics_with_a_wrong_field_is_left_out_and_the_others_count(
    tmp_path: Path,
) -> None:
    store = Store.open(str(tmp_path), "run")
    good = {
        "kind": "train", "step": 3, "examples": 24, "epoch": 0.5, "loss": 0.25, "digest": "a", "time": 1.0,
        "lr": {"aspp": 0.001}, "data_wait": 0.5, "memory": 9,
    }  # fmt: skip
    wrong = [encode(changed) for _, changed in variants(good | {"step": 2})]
    store.write(segment_path(1, 4, 1), b"\n".join([encode(good), *wrong, DEEP]))
    found = read_metrics(store)
    assert good in found
    for row in found:
        assert type(row["step"]) is int
        assert isinstance(row["kind"], str)
        assert type(row.get("loss", 0.0)) in (float, int, type(None))
    MetricsLog(store, 2).resumed(2)  # which writes rows again


def test_an_event_with_a_wrong_field_is_left_out_and_one_that_lacks_a_field_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.open(str(tmp_path), "run")
    whole = [
        {"time": 1.0 + n, "attempt": 1 + n % 3, "writer": "rank-00000"} | event.to_dict()
        for n, event in enumerate(EXAMPLES)
    ]
    lines = [encode(each) for each in whole]
    for event in whole:
        lines += [encode(changed) for _, changed in variants(event)]
    name = "events/a001-rank-00000-00000000-00000.jsonl"
    store.write(name, b"\n".join([*lines, b'{"step": 3}', DEEP]))
    found = read_events(store)
    assert all(event in found for event in whole)
    assert {"step": 3} in found
    for event in whole:
        for field in event:
            assert {key: value for key, value in event.items() if key != field} in found
    for event in found:
        assert type(event.get("time", 0.0)) in (int, float)
        assert type(event.get("attempt")) in (int, type(None))
        assert type(event.get("step", 0)) in (int, type(None))
    for command in (["restarts"], ["restarts", "--json"], ["events"], ["events", "--since", "2h"]):
        assert main([command[0], str(tmp_path / "run"), *command[1:]]) == 0
    for command in ("checkpoints", "verify"):
        assert main([command, str(tmp_path / "run")]) in (0, 1, 2)
    config = to_dict(tiny("base", str(tmp_path), "run"))
    store.write("run.json", encode(run_content() | {"format": 1, "config": config}))
    for words in (["runs", tmp_path], ["report", tmp_path / "run", "-o", tmp_path / "page.html"]):
        assert main([str(word) for word in words]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_configuration_with_a_wrong_field_is_refused_in_a_line() -> None:
    good = to_dict(tiny("base", "/x", "run"))
    for what, changed in variants(good, [None, "x", [], 2**70, float("nan"), KeyError]):
        with contextlib.suppress(ConfigError, StorageError):
            assert isinstance(from_dict(changed), RunConfig), what
