"""Files of a newer raymat are refused by name, never called damaged, and never deleted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from raymat.checkpoint.catalog import newest
from raymat.checkpoint.retention import RetentionPolicy
from raymat.distributed.collectives import Group
from raymat.distributed.world import World
from raymat.errors import NewerFormatError
from raymat.train.loop.restore import iter_candidates, read_together
from raymat.train.loop.saving.commits import Retainer
from raymat.train.loop.state import RunState
from raymat.train.run.extension import read_position
from raymat.train.run.run_url import list_checkpoints
from raymat.train.run.selected_weights import read_state
from tests.support.made_run import NEWER_FILES, write_newer

CPU = torch.device("cpu")
TOLD = "written by a newer raymat (format 9)"


@pytest.mark.parametrize("what", NEWER_FILES[:2])
def test_nothing_goes_on_past_a_newer_checkpoint(local: Any, what: str) -> None:
    local.commit(10)
    checkpoint = write_newer(local, 20, what)
    skipped: list[str] = []
    # A candidate's state file is read after it is chosen, by all workers together.
    candidates = iter_candidates(local.store, "id", lambda _, why: skipped.append(why))
    for read in (
        lambda: read_together(local.store, Group(World(), CPU), next(candidates)),
        lambda: newest(local.store, "id", lambda _, why: skipped.append(why)),
        lambda: read_state(local.url),
        lambda: read_position(local.store, list_checkpoints(local.store), "id", 5),
    ):
        with pytest.raises(NewerFormatError) as caught:
            read()
        assert str(checkpoint) in caught.value.line
        assert "format 9" in caught.value.line
        assert "use the raymat that wrote it" in caught.value.line
    assert skipped == []


@pytest.mark.parametrize("what", NEWER_FILES)
def test_nothing_goes_on_past_a_newer_one_that_is_torn(local: Any, what: str) -> None:
    local.commit(10)
    write_newer(local, 20, what)
    local.store.delete(["checkpoints/step-000000020-a001/shard-00001-of-00002.safetensors"])
    with pytest.raises(NewerFormatError, match="step-000000020-a001 was written by a newer"):
        next(iter_candidates(local.store, "id", lambda checkpoint, why: None))


@pytest.mark.parametrize("what", NEWER_FILES)
@pytest.mark.parametrize("torn", [False, True])
def test_retention_and_prune_leave_a_newer_one_alone_and_say_why(
    local: Any, raymat: Any, what: str, torn: bool
) -> None:
    checkpoint = write_newer(local, 10, what)
    if torn:
        local.store.delete([f"checkpoints/{checkpoint}/shard-00001-of-00002.safetensors"])
    for step in (20, 30, 40):
        local.commit(step, attempt=2)
    before = {path: size for path, size in local.files().items() if str(checkpoint) in path}
    retainer = Retainer(local.store, RetentionPolicy(keep=2), 2)
    retainer.committed(RunState(), ())
    retainer.finish(RunState(), ())
    assert local.names() == [
        str(checkpoint),
        "step-000000030-a002",
        "step-000000040-a002",
    ]
    code, out, _ = raymat("prune", local.url, "--keep", "1", "--yes")
    assert code == 0
    assert "stays" in out[1]
    assert TOLD in out[1]
    assert {p: s for p, s in local.files().items() if str(checkpoint) in p} == before


@pytest.mark.parametrize("what", NEWER_FILES)
def test_verify_says_so_with_exit_code_2(local: Any, raymat: Any, what: str) -> None:
    local.commit(10)
    write_newer(local, 20, what)
    code, out, _ = raymat("verify", local.url)
    assert code == 2
    assert out[2].endswith(TOLD)
    assert out[-1].endswith("0 damaged, 1 newer")


def test_damage_beside_a_newer_one_is_still_damage(local: Any, raymat: Any) -> None:
    local.commit(10)
    local.store.write("checkpoints/step-000000010-a001/state.json", b"{}")
    write_newer(local, 20, "state.json")
    assert raymat("verify", local.url)[0] == 1


def test_a_newer_description_of_the_run_is_no_damage(local: Any, raymat: Any) -> None:
    local.commit(10)
    local.store.write("run.json", b'{"format": 4, "run_id": "id"}')
    code, out, _ = raymat("verify", local.url)
    assert code == 2
    assert "written by a newer raymat" in out[1]
    assert "format 4" in out[1]
    code, _, err = raymat("prune", local.url, "--keep", "1", "--yes")
    assert code == 2
    assert "format 4, expected 3: resume it with the raymat that wrote it" in err[-1]


@pytest.mark.parametrize("what", NEWER_FILES)
def test_the_table_of_checkpoints_shows_it(local: Any, raymat: Any, what: str) -> None:
    local.commit(10)
    write_newer(local, 20, what)
    _, out, _ = raymat("checkpoints", local.url)
    assert out[2].endswith(TOLD)
    assert "1 committed, 0 torn, 1 by a newer raymat" in out[-1]
    told = json.loads("\n".join(raymat("checkpoints", local.url, "--json")[1]))
    assert (told["committed"], told["torn"], told["newer"]) == (1, 0, 1)
    assert told["checkpoints"][1]["state"] == "newer"
