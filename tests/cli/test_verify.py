"""Laws of `raymat verify`: whatever is damaged is found, what is unfinished or goes meanwhile is no damage."""

from __future__ import annotations

import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint import integrity as module
from raymat.checkpoint.retention import prune
from raymat.cli import verify as command
from raymat.cli.verify import VerifyReport, verify
from raymat.train.observability.events import EventLog
from tests.support.events import note


def _states(report: VerifyReport) -> dict[str, str]:
    return {verdict.name: verdict.state for verdict in report.verdicts}


def _folder(run: Any, step: int = 20) -> Path:
    return Path(run.url) / f"checkpoints/step-{step:09d}-a001"


def test_a_run_of_which_every_digest_is_right_is_good(made: Any, raymat: Any) -> None:
    for step in (10, 20, 30):
        made.commit(step)
    code, out, err = raymat("verify", made.url)
    assert code == 0
    assert out[0].split() == ["checkpoint", "world", "bytes", "result"]
    assert [(line.split()[0], line.split()[1], line.split()[-1]) for line in out[1:-1]] == [
        ("step-000000010-a001", "2", "good"),
        ("step-000000020-a001", "2", "good"),
        ("step-000000030-a001", "2", "good"),
    ]
    assert out[-1].startswith(f"{made.store.url}: 3 good (")
    assert out[-1].endswith(", 0 damaged")
    # No terminal here: one plain line.
    assert len(err) == 1
    assert "100%" in err[0]


def _flip(run: Any) -> str:
    path = _folder(run) / "shard-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    return "shard-00001-of-00002.safetensors has another digest than its manifest"


def _truncate(run: Any) -> str:
    path = _folder(run) / "shard-00000-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return f"shard-00000-of-00002.safetensors has {path.stat().st_size} bytes, expected"


def _lose(run: Any) -> str:
    (_folder(run) / "shard-00001-of-00002.safetensors").unlink()
    return "shard-00001-of-00002.safetensors is missing"


def _empty_manifest(run: Any) -> str:
    (_folder(run) / "manifest-00001-of-00002.json").write_bytes(b"")
    return "manifest-00001-of-00002.json is empty"


def _swap_manifests(run: Any) -> str:
    name = "manifest-00001-of-00002.json"
    shutil.copy(_folder(run, 10) / name, _folder(run) / name)
    return f"{name} belongs to another checkpoint or rank"


def _swap_shards(run: Any) -> str:
    name = "shard-00001-of-00002.safetensors"
    shutil.copy(_folder(run, 10) / name, _folder(run) / name)
    return f"{name} has another digest than its manifest"


def _alter_manifest(run: Any) -> str:
    path = _folder(run) / "manifest-00000-of-00002.json"
    path.write_bytes(path.read_bytes().replace(b'"attempt":1', b'"attempt":2'))
    return "manifest-00000-of-00002.json: manifest is damaged"


def _alter_state(run: Any) -> str:
    path = _folder(run) / "state.json"
    path.write_bytes(path.read_bytes().replace(b'"step":20', b'"step":21'))
    return "state.json has another digest than its manifest"


@pytest.mark.parametrize(
    "damage",
    [_flip, _truncate, _lose, _empty_manifest, _swap_manifests, _swap_shards, _alter_manifest, _alter_state],
)  # fmt: skip
def test_damage_is_found_and_named_and_the_others_are_good(
    local: Any, raymat: Any, damage: Callable[[Any], str]
) -> None:
    for step in (10, 20, 30):
        local.commit(step)
    expected = damage(local)
    code, out, _ = raymat("verify", local.url)
    assert code == 1
    assert [": " in line for line in out[1:-1]] == [False, True, False]
    assert f"damaged: {expected}" in out[2]
    assert "2 good" in out[-1]
    assert "1 damaged" in out[-1]
    one = f"{local.url}/checkpoints/step-{{:09d}}-a001"
    assert raymat("verify", one.format(20))[0] == 1
    assert raymat("verify", one.format(10))[0] == 0


def test_any_flipped_bit_is_found(local: Any) -> None:
    local.commit(20)
    draws = random.Random(3)
    files = sorted(_folder(local).iterdir())
    for _ in range(40):
        path = draws.choice(files)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[draws.randrange(len(bad))] ^= 1 << draws.randrange(8)
        path.write_bytes(bad)
        assert verify(local.url).code == 1, path
        path.write_bytes(good)
    assert verify(local.url).code == 0


def test_a_checkpoint_that_is_being_written_is_no_damage(local: Any, raymat: Any) -> None:
    local.commit(10)
    local.commit(20, ranks=1)
    (_folder(local) / ".tmp-1-ab-shard-00001-of-00002.safetensors").write_bytes(b"half")
    code, out, _ = raymat("verify", local.url)
    assert code == 0
    assert "torn: manifest-00001-of-00002.json is missing" in out[2]
    assert out[-1].endswith("0 damaged, 1 torn")
    # Asked for by itself it is not what one hopes for.
    assert raymat("verify", f"{local.url}/checkpoints/step-000000020-a001")[0] == 1


def _record(run: Any, *checkpoints: Any, format: int = 2) -> EventLog:
    """The log of attempt 1, which says that these were committed; format 1: as by a raymat that tells of no deletion."""
    log = EventLog.for_rank(run.store, 1, 0)
    log.emit(note("start", **({"format": format} if format > 1 else {})))
    for checkpoint in checkpoints:
        log.emit(note("commit", checkpoint=str(checkpoint)))
    return log


def _lose_manifest(run: Any, checkpoint: Any, *ranks: int) -> None:
    run.store.delete(
        [f"checkpoints/{checkpoint}/manifest-0000{rank}-of-00002.json" for rank in ranks]
    )


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_committed_one_that_lost_its_manifest_is_damaged(
    local: Any, raymat: Any, which: int, ranks: tuple[int, ...]
) -> None:
    checkpoints = [local.commit(step) for step in (10, 20, 30)]
    _record(local, *checkpoints)
    assert raymat("verify", local.url)[0] == 0
    _lose_manifest(local, checkpoints[which], *ranks)
    code, out, _ = raymat("verify", local.url)
    assert code == 1
    expected = f"damaged: manifest-0000{ranks[0]}-of-00002.json is missing, though it was committed"
    assert [expected in line for line in out[1:-1]] == [n == which for n in range(3)]
    assert "2 good" in out[-1]
    assert out[-1].endswith("1 damaged")
    assert raymat("verify", f"{local.url}/checkpoints/{checkpoints[which]}")[0] == 1


def test_what_a_deletion_left_is_no_damage(local: Any) -> None:
    checkpoints = [local.commit(step) for step in (10, 20, 30)]
    log = _record(local, *checkpoints)
    names = list(map(str, checkpoints[:2]))
    log.emit(note("delete", checkpoints=names, torn=False))
    _lose_manifest(local, checkpoints[0], 0)
    # A manifest that was on its way when its checkpoint was deleted.
    local.store.delete([f"checkpoints/{checkpoints[1]}/shard-00001-of-00002.safetensors"])
    report = verify(local.url)
    assert report.code == 0
    assert _states(report) == {names[0]: "torn", names[1]: "torn", str(checkpoints[2]): "good"}


def test_a_deletion_that_begins_during_the_look_is_no_damage(
    local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = local.commit(10), local.commit(20)
    log = _record(local, old, new)
    real = command.list_checkpoints

    def late(*args: Any) -> Any:
        log.emit(note("delete", checkpoints=[str(old)], torn=False))
        _lose_manifest(local, old, 0, 1)
        return real(*args)

    monkeypatch.setattr(command, "list_checkpoints", late)
    report = verify(local.url)
    assert (report.code, _states(report)) == (0, {str(old): "torn", str(new): "good"})


def test_the_last_one_is_missed_even_if_nothing_of_it_is_left(local: Any, raymat: Any) -> None:
    first, old, new = local.commit(10), local.commit(20), local.commit(30)
    log = _record(local, first, old, new)
    shutil.rmtree(Path(local.url) / f"checkpoints/{new}")
    code, out, _ = raymat("verify", local.url)
    assert code == 1
    assert out[3].split() == [
        str(new),
        "-",
        "0",
        "B",
        *["damaged:", "it", "is", "missing,", "though", "it", "was", "committed"],
    ]
    # An older one may have been removed by hand, and one that a deletion names by raymat.
    shutil.rmtree(Path(local.url) / f"checkpoints/{old}")
    log.emit(note("delete", checkpoints=[str(new)], torn=False))
    assert verify(local.url).code == 0


def test_an_older_raymat_deleted_without_a_word_any_but_the_last(local: Any) -> None:
    checkpoints = [local.commit(step) for step in (10, 20, 30)]
    _record(local, *checkpoints, format=1)
    _lose_manifest(local, checkpoints[0], 0, 1)
    assert verify(local.url).code == 0
    _lose_manifest(local, checkpoints[2], 0)
    assert _states(verify(local.url)) == {
        str(checkpoints[0]): "torn",
        str(checkpoints[1]): "good",
        str(checkpoints[2]): "damaged",
    }


def test_what_was_never_committed_is_no_damage_whatever_else_was(local: Any) -> None:
    _record(local, local.commit(10))
    local.commit(20, ranks=1)
    assert verify(local.url).code == 0


def test_a_checkpoint_that_goes_while_it_is_read_is_no_damage(
    local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = local.commit(10), local.commit(20)
    real = module._check_file

    def late(store: Any, *rest: Any) -> str:
        prune(store, [old])
        return real(store, *rest)

    monkeypatch.setattr(module, "_check_file", late)
    report = verify(local.url)
    assert _states(report) == {str(old): "gone", str(new): "good"}
    assert report.code == 0


def test_a_checkpoint_of_another_run_is_damage(local: Any) -> None:
    local.store.write("run.json", b'{"format": 1, "run_id": "id"}')
    local.commit(10)
    local.commit(20, run="stranger")
    report = verify(local.url)
    assert report.code == 1
    assert report.verdicts[1].reason == "foreign: it is of run 'stranger', expected 'id'"


def test_a_damaged_description_of_the_run_is_damage(local: Any) -> None:
    local.store.write("run.json", b'{"format": 1, "run')
    local.commit(10)
    report = verify(local.url)
    assert _states(report) == {"run.json": "damaged", "step-000000010-a001": "good"}
    assert report.code == 1


def test_a_checkpoint_that_is_not_there_is_exit_2(local: Any, raymat: Any) -> None:
    local.commit(10)
    code, _, err = raymat("verify", f"{local.url}/checkpoints/step-000000099-a001")
    assert code == 2
    assert err == [
        f"raymat: error: there is no checkpoint step-000000099-a001 in {local.url}",
    ]


def test_memory_does_not_grow_with_the_checkpoint(
    local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RANGE", 2**18)
    big = {"model/a": torch.zeros(2**22), "optimizer/a": torch.zeros(2**22)}
    local.commit(10, tensors=big)
    local.commit(20, tensors=big)
    tracemalloc.start()
    try:
        report = verify(local.url)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert report.code == 0
    assert sum(verdict.bytes for verdict in report.verdicts) > 67_000_000
    # Four files with five ranges of 2**18 bytes each are 5 MB.
    assert peak < 8_000_000
