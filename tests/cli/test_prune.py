"""Laws of `raymat prune`: nothing goes without --yes, and what is needed stays whatever is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.checkpoint.catalog import newest
from raymat.train.observability.events import EventLog, read_events
from raymat.train.run.lease.entries import Pace, list_entries, read_entries
from raymat.train.run.lease.lease import Lease
from raymat.train.run.lease.process import Owner
from raymat.train.run.open_run import open_run
from tests.support.events import note
from tests.support.kit import tiny
from tests.support.made_run import MadeRun
from tests.support.mounts import small_disk

LOSSES = {10: 0.9, 20: 0.4, 30: 0.5, 40: 0.3, 50: 0.35, 60: 0.6}


def _six(run: Any) -> None:
    for step in LOSSES:
        run.commit(step, losses={s: loss for s, loss in LOSSES.items() if s <= step})


def _below(run: Any, folder: str) -> dict[str, int]:
    return {path: size for path, size in run.files().items() if path.startswith(f"{folder}/")}


def _steps(run: Any) -> list[int]:
    return [int(name[5:14]) for name in run.names()]


def test_without_yes_nothing_is_touched(made: Any, raymat: Any) -> None:
    _six(made)
    before = made.files()
    code, out, _ = raymat("prune", made.url, "--keep", "2")
    assert code == 0
    table = [(line.split()[0], *line.split()[3:]) for line in out[1:-2]]
    assert table == [
        ("step-000000010-a001", "goes", "nothing", "keeps", "it"),
        ("step-000000020-a001", "goes", "nothing", "keeps", "it"),
        ("step-000000030-a001", "goes", "nothing", "keeps", "it"),
        ("step-000000040-a001", "stays", "best"),
        ("step-000000050-a001", "stays", "newest"),
        ("step-000000060-a001", "stays", "newest"),
    ]
    assert out[-2].startswith("3 checkpoints to delete (")
    assert out[-2].endswith("), 3 to keep")
    assert out[-1] == (
        "dry run, nothing was deleted: add --yes to delete; what is unfinished stays while somebody trains the run"
    )
    assert made.files() == before


def test_with_yes_the_same_ones_go_and_doing_it_again_changes_nothing(
    made: Any, raymat: Any
) -> None:
    _six(made)
    doomed = {path for path in made.files() if path.split("/")[1] < "step-000000040"}
    left = {path: size for path, size in made.files().items() if path not in doomed}
    freed = sum(made.files()[path] for path in doomed)
    code, out, _ = raymat("prune", made.url, "--keep", "2", "--yes")
    assert (code, out[-1]) == (0, f"deleted: {freed / 1000:.1f} kB freed")
    assert _below(made, "checkpoints") == left
    assert raymat("prune", made.url, "--keep", "2", "--yes")[1][-1] == "deleted: 0 B freed"
    assert _below(made, "checkpoints") == left
    # What it did is told, and what it held is released.
    (event,) = read_events(made.store)
    assert (event["writer"], event["kind"], event["torn"]) == ("prune", "delete", False)
    assert event["checkpoints"] == [f"step-0000000{step}-a001" for step in (10, 20, 30)]
    (entry,) = read_entries(made.store, list_entries(made.store))
    assert entry.entry.state == "released"


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ("--keep 1", [40, 60]),
        ("--keep 1 --keep-best 3", [20, 40, 50, 60]),
        ("--keep 1 --keep-best 0", [60]),
        ("--keep 1 --keep-best 0 --every 20", [20, 40, 60]),
        ("--keep 1 --keep-best 0 --loss-thresholds 0.9,0.45,0.31,0.1", [10, 20, 40, 60]),
        ("--keep 9", [10, 20, 30, 40, 50, 60]),
    ],
)
def test_each_option_keeps_what_it_says(
    local: Any, raymat: Any, options: str, steps: list[int]
) -> None:
    _six(local)
    assert raymat("prune", local.url, *options.split(), "--yes")[0] == 0
    assert _steps(local) == steps


def test_the_ends_of_epochs_stay(local: Any, raymat: Any, tmp_path: Path) -> None:
    # 20 examples in steps of 8: virtual epochs end within steps 3, 5, 8 and 10.
    config = tiny("base", tmp_path / "runs", "run", epoch_examples=20, precision="fp32")
    run = open_run(config, local.store).run_id
    for step in range(1, 12):
        local.commit(step, run=run)
    assert raymat("prune", local.url, "--keep", "1", "--keep-epochs", "--yes")[0] == 0
    assert _steps(local) == [3, 5, 8, 10, 11]


def test_ends_of_epochs_without_run_json_are_unknown(local: Any, raymat: Any) -> None:
    local.commit(10)
    code, _, err = raymat("prune", local.url, "--keep", "1", "--keep-epochs")
    assert code == 2
    assert f"--keep-epochs needs {local.url}/run.json, which is missing" in err[-1]


def _damage(run: Any, step: int) -> None:
    (shard,) = Path(run.url).glob(f"checkpoints/step-{step:09d}-*/shard-00000*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")


def test_the_newest_that_verifies_is_never_deleted(local: Any, raymat: Any) -> None:
    for step in (10, 20, 30, 40):
        local.commit(step)
    _damage(local, 30)
    _damage(local, 40)
    code, out, _ = raymat("prune", local.url, "--keep", "1", "--keep-best", "0", "--yes")
    assert code == 0
    # The evidence stays too.
    assert _steps(local) == [20, 30, 40]
    assert out[3].split()[3:9] == ["stays", "torn,", "may", "still", "be", "needed"]
    assert "shard-00000-of-00002.safetensors has another digest than its manifest" in out[3]
    found = newest(local.store)
    assert found is not None
    assert found[0].step == 20


def test_where_nothing_verifies_nothing_is_deleted(local: Any, raymat: Any) -> None:
    for step in (10, 20):
        local.commit(step)
        _damage(local, step)
    before = local.files()
    code, out, err = raymat("prune", local.url, "--keep", "1", "--yes")
    assert (code, out) == (2, [])
    assert err[-1] == (
        f"raymat: error: no checkpoint of {local.url} verifies, nothing is deleted: see raymat verify"
    )
    assert _below(local, "checkpoints") == before


QUICK = Pace(renew=0.1, ttl=30.0, look=0.02, watch=0.1)


def test_beside_a_driver_torn_ones_of_the_dead_go_and_one_that_is_being_written_stays(
    local: Any, raymat: Any
) -> None:
    local.commit(10, attempt=1)
    local.commit(15, attempt=1, ranks=1)
    local.commit(20, attempt=2)
    local.commit(
        19, attempt=2, ranks=1
    )  # given up: each worker writes in order, and step 20 is committed
    local.commit(30, attempt=2, ranks=1)
    temporary = Path(local.url) / "checkpoints/step-000000030-a002/.tmp-1-ab-shard"
    temporary.write_bytes(b"half")
    with Lease.acquire(local.store, pace=QUICK) as lease:
        code, out, _ = raymat("prune", local.url, "--keep", "5", "--yes")
        assert lease.lost is None
    assert (code, out[-2].startswith("what is unfinished stays: ")) == (0, True)
    assert f"is being trained by {Owner.me()}" in out[-2]
    assert local.names() == ["step-000000010-a001", "step-000000020-a002", "step-000000030-a002"]
    assert temporary.exists()


def test_what_nobody_writes_any_more_goes_though_no_newer_one_exists(
    local: Any, raymat: Any
) -> None:
    local.commit(20, attempt=2)
    torn = local.commit(30, attempt=2, ranks=1)
    folder = Path(local.url) / "checkpoints/step-000000031-a002"
    folder.mkdir()
    (folder / ".tmp-1-ab-shard").write_bytes(b"half")
    before = local.files()
    _, out, _ = raymat("prune", local.url, "--keep", "5")
    assert out[2].split()[3:6] == ["goes", "left", "unfinished"]
    assert local.files() == before
    code, out, _ = raymat("prune", local.url, "--keep", "5", "--yes")
    assert (code, "freed" in out[-1]) == (0, True)
    assert local.names() == ["step-000000020-a002"]
    (event,) = read_events(local.store)
    assert (event["checkpoints"], event["torn"]) == ([str(torn)], True)


def test_a_run_of_torn_ones_alone_is_emptied_once_nobody_writes_them(
    local: Any, raymat: Any
) -> None:
    local.commit(10, ranks=1)
    with Lease.acquire(local.store, pace=QUICK):
        _, said, _ = raymat("prune", local.url, "--keep", "1", "--yes")
        assert local.names() == ["step-000000010-a001"]
    assert re.fullmatch(
        rf"what is unfinished stays: {local.url} is being trained by pid \d+ of \S+ on host \S+, since \S+ \S+ UTC: "
        "wait until it ends, or stop it",
        said[-2],
    )  # prune has no --take-over
    assert raymat("prune", local.url, "--keep", "1", "--yes")[0] == 0
    assert local.names() == []


def test_damage_that_nothing_supersedes_stays_for_whoever_mends_it(local: Any, raymat: Any) -> None:
    local.commit(10)
    lost, undone = local.commit(20), local.commit(30)
    local.store.delete([f"checkpoints/{lost}/shard-00001-of-00002.safetensors"])
    EventLog.for_rank(local.store, 1, 0).emit(note("commit", checkpoint=str(undone)))
    local.store.delete([f"checkpoints/{undone}/manifest-00001-of-00002.json"])
    raymat("prune", local.url, "--keep", "5", "--yes")
    assert _steps(local) == [10, 20, 30]


def test_on_a_full_disk_that_takes_no_lease_what_is_safe_goes_first(
    raymat: Any, tmp_path: Path
) -> None:
    with small_disk(tmp_path, 2**19) as folder:
        run = MadeRun(str(folder))
        for step in (10, 20):
            run.commit(step, tensors={"model/a": torch.zeros(2**14)})
        run.commit(30, tensors={"model/a": torch.zeros(2**14)}, ranks=1)
        with pytest.raises(OSError, match="No space left"), (folder / "full").open("wb") as file:
            while True:
                file.write(bytes(4096))
        assert raymat("prune", run.url, "--keep", "1", "--yes")[0] == 0
        assert run.names() == ["step-000000020-a001"]
        told = [event["checkpoints"] for event in read_events(run.store)]
        assert told == [["step-000000010-a001"], ["step-000000030-a001"]]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("", "Missing from raymat prune: --keep N (raymat prune --help)"),
        ("--keep 0", "--keep must be at least 1, got 0"),
        ("--keep 1 --keep-best -1", "--keep-best must be at least 0, got -1"),
        ("--keep 1 --every 0", "--every must be at least 1, got 0"),
        ("--keep 1 --loss-thresholds 0.5,low", "--loss-thresholds: expected numbers like 0.5,0.4, got '0.5,low'"),
        ("--keep 1 --loss-thresholds nan", "--loss-thresholds: expected numbers like 0.5,0.4, got 'nan'"),
        ("--keep 1 --yess", "unknown flag --yess: did you mean --yes?"),
    ],
)  # fmt: skip
def test_a_mistaken_option_is_one_line(local: Any, raymat: Any, options: str, line: str) -> None:
    assert raymat("prune", local.url, *options.split()) == (2, [], [f"raymat: error: {line}"])
