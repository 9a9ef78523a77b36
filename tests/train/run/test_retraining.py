"""The same run longer, and on more data: what was used stays as it was, and a kill changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from raymat.config.run import RunConfig, build
from raymat.data.batch import MicroBatch
from raymat.data.dataset.source import _open
from raymat.data.feed import LocalFeed
from raymat.data.lineage import DatasetSpan, Lineage
from raymat.data.sample_order import digest_lanes, digest_text
from raymat.distributed.world import World
from raymat.errors import CheckpointError, ConfigError, DataError, StorageError
from raymat.storage.store import Store
from raymat.train.loop import startup, trainer
from raymat.train.loop.interfaces import Host, Worker
from raymat.train.loop.state import RunState
from raymat.train.loop.trainer import Outcome
from raymat.train.observability.metrics_log import read_metrics
from raymat.train.run.open_run import OpenedRun, open_run
from raymat.train.run.schedule import Schedule
from raymat.train.validation.criteria import Validation
from tests.support import runs
from tests.support.small import build_small
from tests.support.tenures import Awaited
from tests.support.workers import WorkerError, in_workers

SHORT: dict[str, Any] = {"synthetic": 10, "epochs": 2, "epoch_examples": 7}
"""14 examples of 10 pairs in batches of 4, 4, 4 and 2."""
LONG: dict[str, Any] = {"synthetic": 16, "epochs": 2, "epoch_examples": 20}
"""40 examples; those from 20 on of 16 pairs."""


def tiny(folder: Path, name: str, **options: Any) -> RunConfig:
    quick = {"checkpoint_interval": 1, "valid_interval": 3, "valid_examples": 2, "resolution": 32}
    return runs.tiny(folder, name, **(quick | options))


class Feed(LocalFeed):
    """Kills this process when it is asked for step `kill_at`."""

    kill_at: int | None = None

    def train(self, first_step: int, end_step: int) -> Iterator[MicroBatch]:
        for batch in super().train(first_step, end_step):
            if batch.step == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


def work(world: World, run: OpenedRun, kill: Mapping[int, int] | None = None) -> Outcome:
    """One worker of what a driver prepared; rank r dies when it has the batch of step index kill[r]."""
    startup.build = build_small
    feed = Feed(run.source.open(), run.order, run.geometry, world)
    feed.kill_at = (kill or {}).get(world.rank)
    return trainer.run(
        run,
        Worker(world, torch.device("cpu")),
        feed=feed,
        store=runs.store_of(run.config),
        host=Host(),
    )


def drive(
    workers: int, config: RunConfig, kill: Mapping[int, int] | None = None
) -> tuple[OpenedRun, list[Any]]:
    """A driver's attempt: what it prepared, and how its workers ended; all of them where one was killed."""
    run = open_run(config, runs.store_of(config))
    if kill is None:
        return run, in_workers(workers, work, run)
    with pytest.raises(WorkerError):
        in_workers(workers, work, run, kill)
    return run, []


def rows(config: RunConfig) -> list[tuple[Any, ...]]:
    keys = ("kind", "step", "examples", "epoch", "loss", "digest")
    return [tuple(row[key] for key in keys) for row in read_metrics(runs.store_of(config))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """14 examples on 10 pairs, ended in a batch of 2; then up to 40, on 16 pairs. Two workers, nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    drive(2, tiny(folder, "run", **SHORT))
    config = tiny(folder, "run", grow_dataset=True, **LONG)
    drive(2, config)
    return config


def stored(config: RunConfig) -> dict[str, Any]:
    return json.loads(runs.store_of(config).read("run.json"))


@pytest.mark.slow
def test_a_finished_run_goes_on_on_more_data_with_the_pass_under_way_finished_first(
    undisturbed: RunConfig,
) -> None:
    run = open_run(undisturbed, runs.store_of(undisturbed))
    assert run.order.lineage == Lineage(
        spans=(DatasetSpan(20, 10, 10, "synthetic-10"),), ends=(14,)
    )
    assert [run.order.step_numbers(step) for step in range(run.order.total_steps)] == [
        range(4), range(4, 8), range(8, 12), range(12, 14),
        range(14, 18), range(18, 22), range(22, 26), range(26, 30), range(30, 34), range(34, 38), range(38, 40),
    ]  # fmt: skip
    # What the workers say they trained on is what the order says, and each pair was used once a pass.
    digests = [digest for kind, _, _, _, _, digest in rows(undisturbed) if kind == "train"]
    used = []
    for step, digest in enumerate(digests):
        examples = run.order.examples(run.order.step_numbers(step))
        assert digest == digest_text(digest_lanes(examples))
        used += [example.pair for example in examples]
    assert len(used) == 40
    assert sorted(used[:10]) == sorted(used[10:20]) == list(range(10))
    assert sorted(used[20:36]) == list(range(16))


def test_the_steps_before_are_those_of_a_run_that_never_grew(
    undisturbed: RunConfig, tmp_path: Path
) -> None:
    before = tiny(tmp_path, "before", **SHORT)
    drive(1, before)
    digests = [(row[1], row[2], row[5]) for row in rows(before)]
    assert digests == [(row[1], row[2], row[5]) for row in rows(undisturbed) if row[2] <= 14]
    assert digests[-1][:2] == (4, 14)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill", [pytest.param(4, marks=pytest.mark.chaos), 5, pytest.param(6, marks=pytest.mark.chaos)]
)
def test_killed_around_the_growth_and_resumed_equals_undisturbed_to_the_bit(
    undisturbed: RunConfig, tmp_path: Path, kill: int
) -> None:
    """Killed in the short run, and in the first step after its end, at the step in which the new pairs begin, or after it."""
    short, long = tiny(tmp_path, "run", **SHORT), tiny(tmp_path, "run", **LONG)
    drive(2, short, {1: 2})
    drive(2, short)
    drive(2, tiny(tmp_path, "run", grow_dataset=True, **LONG), {kill % 2: kill})
    run, outcomes = drive(2, long)
    assert [(outcome.step, outcome.attempt) for outcome in outcomes] == [(11, 4)] * 2
    assert run.changes == ()
    expected, found = runs.checkpoints(undisturbed), runs.checkpoints(long)
    assert {4, 11} <= expected.keys() & found.keys()
    for step in expected.keys() & found.keys():
        assert runs.differences(expected[step], found[step]) == []
    assert rows(long) == rows(undisturbed)


@pytest.mark.slow
def test_a_longer_run_sees_the_same_examples_with_any_number_of_workers(
    undisturbed: RunConfig, tmp_path: Path
) -> None:
    drive(3, tiny(tmp_path, "run", **SHORT))
    config = tiny(tmp_path, "run", grow_dataset=True, **LONG)
    drive(1, config)
    assert [row[5] for row in rows(config)] == [row[5] for row in rows(undisturbed)]


@pytest.mark.slow
def test_one_whose_end_is_lost_takes_it_again_as_it_was(
    undisturbed: RunConfig, tmp_path: Path
) -> None:
    """The checkpoint at the old end is damaged after the driver has looked at it: its step comes again, as small as it was."""
    drive(2, tiny(tmp_path, "run", **SHORT))
    config = tiny(tmp_path, "run", grow_dataset=True, **LONG)
    run = open_run(config, runs.store_of(config))
    (folder,) = (tmp_path / "run/checkpoints").glob("step-000000004-*")
    shard = next(folder.glob("shard-00001*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    in_workers(2, work, run)
    # But for the epoch, which is told in the virtual epochs of now.
    found, expected = ([row[:3] + row[4:] for row in rows(c)] for c in (config, undisturbed))
    assert found == expected


def test_without_the_flag_more_data_is_refused_and_the_flag_named(undisturbed: RunConfig) -> None:
    folder = Path(undisturbed.storage)
    before = stored(undisturbed)
    with pytest.raises(ConfigError, match=r"--synthetic was 16, is 20; .* --grow-dataset for more"):
        open_run(tiny(folder, "run", **(LONG | {"synthetic": 20})), runs.store_of(undisturbed))
    with pytest.raises(ConfigError, match=r"--batch-size was 4, is 8; .* another --name$"):
        open_run(tiny(folder, "run", batch_size=8, **LONG), runs.store_of(undisturbed))
    with pytest.raises(DataError, match=r"--synthetic was 16, is 12: .* only grow"):
        open_run(
            tiny(folder, "run", grow_dataset=True, **(LONG | {"synthetic": 12})),
            runs.store_of(undisturbed),
        )
    assert stored(undisturbed) == before


def test_workers_whose_plan_knows_nothing_of_the_growth_are_refused(undisturbed: RunConfig) -> None:
    """A checkpoint carries which datasets its examples came from."""
    run = open_run(undisturbed, runs.store_of(undisturbed))
    order = dataclasses.replace(run.order, lineage=Lineage(ends=(14,)))
    (error,) = in_workers(1, work, dataclasses.replace(run, order=order))
    assert isinstance(error, DataError)
    assert "synthetic-10, synthetic-16 from 20, is synthetic-16)" in error.line
    order = dataclasses.replace(
        run.order, lineage=Lineage(spans=run.order.lineage.spans), total_examples=60
    )
    (error,) = in_workers(1, work, dataclasses.replace(run, order=order))
    assert isinstance(error, CheckpointError)
    assert "step 11 of the run is at 44 examples, its checkpoint at 40" in error.line


def test_a_complete_run_that_is_asked_for_less_is_complete(undisturbed: RunConfig) -> None:
    folder = Path(undisturbed.storage)
    for less in (SHORT | {"synthetic": 16}, {"synthetic": 16, "steps": 3}):
        run = open_run(tiny(folder, "run", **less), runs.store_of(undisturbed))
        (outcome,) = in_workers(1, work, run)
        assert outcome.already_complete
    open_run(undisturbed, runs.store_of(undisturbed))


def test_a_run_of_steps_can_be_made_longer_by_steps_after_any_end(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path), "run")
    drive(1, tiny(tmp_path, "run", **SHORT))
    longer = open_run(tiny(tmp_path, "run", synthetic=10, steps=6), store).order
    assert (longer.total_examples, longer.total_steps, longer.lineage.ends) == (22, 6, (14,))


@pytest.mark.slow
def test_an_unfinished_run_that_is_made_longer_is_as_if_it_had_been_begun_so(
    tmp_path: Path,
) -> None:
    drive(1, tiny(tmp_path, "run", **SHORT), {0: 2})
    run, _ = drive(1, tiny(tmp_path, "run", synthetic=10, epochs=3, epoch_examples=7))
    assert run.order.lineage == Lineage()
    whole = tiny(tmp_path, "whole", synthetic=10, epochs=3, epoch_examples=7)
    drive(1, whole)
    longer = tiny(tmp_path, "run", synthetic=10)
    assert [row[5] for row in rows(longer)] == [row[5] for row in rows(whole)]


def test_the_default_virtual_epoch_stays_as_long_as_the_dataset_was_at_the_beginning(
    tmp_path: Path,
) -> None:
    plain: dict[str, Any] = {"epoch_examples": None, "epochs": 1.5}
    store = Store.open(str(tmp_path), "run")
    assert open_run(tiny(tmp_path, "run", synthetic=10, **plain), store).order.total_examples == 15
    config = tiny(tmp_path, "run", synthetic=30, grow_dataset=True, **plain)
    order = open_run(config, store).order
    assert (order.pairs, order.total_examples) == (30, 15)
    assert Schedule.of(config, order).epoch_examples == 10


def test_validations_of_another_set_are_displaced_by_the_first_of_the_new_one() -> None:
    record = RunState(validations=[Validation(2, 0.1), Validation(4, 0.2)])
    record.add_validation(Validation(4, 0.3), 4)  # one that was owed
    assert [v.loss for v in record.validations] == [0.1, 0.2, 0.3]
    for step in (6, 8):
        record.add_validation(Validation(step, 0.5), 4)
    assert [v.step for v in record.validations] == [6, 8]


# Datasets of files.


def add(root: Path, split: str, *stems: str) -> None:
    for stem in stems:
        for name in (f"data/{split}/fgr/{stem}.jpg", f"data/{split}/pha/{stem}.png"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"picture")
        wall = root / f"walls/{split}/{stem}.jpg"
        wall.parent.mkdir(parents=True, exist_ok=True)
        wall.write_bytes(b"wall")


def files(root: Path, **options: Any) -> RunConfig:
    urls = {"dataset": f"{root}/data", "backgrounds": f"{root}/walls"}
    return build("base", urls | {"name": "run", "storage": str(root), "device": "cpu"} | options)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    add(tmp_path, "train", "b", "d", "f")
    add(tmp_path, "valid", "v")
    return tmp_path


def test_what_was_added_is_told_and_new_files_are_not_seen_without_the_flag(dataset: Path) -> None:
    store = Store.open(str(dataset), "run")
    first = open_run(files(dataset), store)
    add(dataset, "train", "a", "c", "e", "g")
    add(dataset, "valid", "u")
    resumed = open_run(files(dataset), store)
    assert (resumed.order, resumed.listing_digest) == (first.order, first.listing_digest)
    grown = open_run(files(dataset, grow_dataset=True), store)
    assert [change.line for change in grown.changes] == [
        "the dataset has grown: 3 pairs + 4 (a, c, e, ...), 3 backgrounds + 4 (a, c, e, ...), 1 validation pairs + 1 (u), "
        "1 validation backgrounds + 1 (u); from example 0 on; validations after step 0 cannot be compared with those before"
    ]  # fmt: skip
    assert grown.order.pairs == 7
    assert grown.source.open().name_of(3) == "a"
    assert not grown.config.data.grow_dataset
    # Once taken it stays, and taking it again finds nothing.
    assert open_run(files(dataset), store).order == grown.order
    again = open_run(files(dataset, grow_dataset=True), store)
    assert (again.order, again.listing_digest) == (grown.order, grown.listing_digest)
    assert [change.line for change in again.changes] == ["nothing was added to the dataset"]


def test_an_identical_copy_of_the_dataset_elsewhere_is_the_same_dataset(dataset: Path) -> None:
    store = Store.open(str(dataset), "run")
    first = open_run(files(dataset), store)
    (dataset / "data").rename(dataset / "moved")
    moved = {"dataset": f"{dataset}/moved"}
    found = open_run(files(dataset, **moved), store)
    assert (found.order, found.listing_digest) == (first.order, first.listing_digest)
    assert [change.line for change in found.changes] == [
        f"the dataset has moved: --dataset is now {dataset}/moved; all 12 files have the same names and sizes"
    ]
    again = open_run(files(dataset, **moved), store)
    assert (again.order, again.changes) == (first.order, ())


def test_a_copy_on_another_storage_and_of_the_backgrounds_counts_too(dataset: Path) -> None:
    store = Store.open(str(dataset), "run")
    open_run(files(dataset), store)
    add(dataset, "train", "zz")
    open_run(
        files(dataset, grow_dataset=True), store
    )  # its rows are in another order now than in a listing
    add(dataset, "train", "aa")
    grown = open_run(files(dataset, grow_dataset=True), store)
    memory = fsspec.filesystem("memory")
    memory.put(f"{dataset}/walls", "/elsewhere", recursive=True)
    moved = {"backgrounds": "memory://elsewhere", "dataset": f"{dataset}/data"}
    found = open_run(files(dataset, **moved), store)
    assert found.order == grown.order
    source = found.source.open()
    assert source.name_of(3) == "zz"
    assert source.name_of(4) == "aa"
    (change,) = found.changes
    assert change.line.startswith(
        "the dataset has moved: --backgrounds is now memory://elsewhere; all"
    )


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda root: (root / "train/fgr/d.jpg").write_bytes(b"other"), "train/fgr/d.jpg has 5 bytes, had 7"),
        (lambda root: [(root / f"train/{k}").unlink() for k in ("fgr/d.jpg", "pha/d.png")], "train/fgr/d.jpg is missing"),
        (lambda root: (root / "valid/pha/v.png").rename(root / "valid/pha/v.webp"), "valid/pha/v.png is now valid/pha/v.webp"),
        (lambda root: add(root.parent, "train", "e"), "train/fgr/e.jpg is new"),
        (lambda root: root.rename(root.parent / "gone"), "no such folder"),
    ],
)  # fmt: skip
def test_a_copy_that_differs_is_refused_with_the_first_difference(
    dataset: Path, change: Any, difference: str
) -> None:
    store = Store.open(str(dataset), "run")
    open_run(files(dataset), store)
    before = sorted(path.name for path in (dataset / "run").rglob("*"))
    copy = dataset / "copy/data"
    shutil.copytree(dataset / "data", copy)
    change(copy)
    with pytest.raises(ConfigError) as refused:
        open_run(files(dataset, dataset=str(copy)), store)
    assert f"--dataset was {dataset}/data, is {copy}; " in refused.value.line
    assert (
        "--grow-dataset for more data; it is no copy of the run's dataset: " in refused.value.line
    )
    assert difference in refused.value.line
    assert sorted(path.name for path in (dataset / "run").rglob("*")) == before


def test_a_moved_dataset_may_grow_and_the_run_may_be_made_longer_at_once(dataset: Path) -> None:
    store = Store.open(str(dataset), "run")
    first = open_run(files(dataset, epochs=1.0), store)
    (dataset / "data").rename(dataset / "moved")
    moved = {"dataset": f"{dataset}/moved", "epochs": 2.0}
    longer = open_run(files(dataset, **moved), store)
    assert (longer.order.total_examples, longer.listing_digest) == (6, first.listing_digest)
    shutil.copytree(dataset / "moved", dataset / "data")
    add(dataset, "train", "e")
    grown = open_run(files(dataset, epochs=2.0, grow_dataset=True), store)
    assert grown.order.pairs == 4


def test_files_that_are_gone_leave_the_run_as_it_was(dataset: Path) -> None:
    store = Store.open(str(dataset), "run")
    first = open_run(files(dataset), store)
    add(dataset, "train", "a")
    (dataset / "walls/train/d.jpg").write_bytes(b"another wall")
    with pytest.raises(DataError, match=r"missing 0 files, changed 1 files \(train/d.jpg\)"):
        open_run(files(dataset, grow_dataset=True), store)
    with pytest.raises(ConfigError, match=r"cannot change from one to the other"):
        open_run(build("base", {"name": "run", "synthetic": 3, "storage": str(dataset), "grow_dataset": True}), store)  # fmt: skip
    assert open_run(files(dataset), store).order == first.order


def prepare_and_die(world: World, config: RunConfig, after: str) -> None:
    """Prepare a run; die by SIGKILL once the first file whose name begins with `after` is written."""
    write = Store.write

    def kill(self: Store, path: str, data: Any) -> None:
        write(self, path, data)
        if path.startswith(after):
            os.kill(os.getpid(), signal.SIGKILL)

    Store.write = kill  # type: ignore[method-assign]
    open_run(config, runs.store_of(config))


def test_a_damaged_listing_is_made_again_of_the_same_dataset_and_of_no_other(dataset: Path) -> None:
    store = Store.open(str(dataset), "run")
    first = open_run(files(dataset), store)
    (path,) = [f.path for f in store.list() if f.path.startswith("listing-")]
    whole = store.read(path)
    store.write(path, whole[:-1] + b"x")
    _open.cache_clear()
    resumed = open_run(files(dataset), store)
    assert [c.line for c in resumed.changes] == [
        "the dataset's listing was damaged: the dataset, unchanged, is listed again"
    ]
    assert (resumed.order, store.read(path)) == (first.order, whole)
    add(dataset, "train", "a")
    store.write(path, b"")
    _open.cache_clear()
    with pytest.raises(DataError, match="listing is damaged"):
        open_run(files(dataset), store)


@pytest.mark.parametrize("damaged", ["run.json", "run"])
@pytest.mark.parametrize("how", ["cut", "a digit"])
def test_what_a_run_is_survives_damage_of_either_copy_but_not_of_both(
    dataset: Path, damaged: str, how: str
) -> None:
    store = Store.open(str(dataset), "run")
    first = open_run(files(dataset), store)
    (record,) = [f.path for f in store.list("run")]
    path = "run.json" if damaged == "run.json" else record
    data = store.read(path)
    assert store.read("run.json") == store.read(record)
    broken = data[:-20] if how == "cut" else data.replace(b'"seed": 0', b'"seed": 1')
    assert broken != data
    store.write(path, broken)
    resumed = open_run(files(dataset), store, tenure=Awaited(lambda: None, "000002-aaaaaaaa"))
    assert (resumed.run_id, resumed.config.data.seed) == (first.run_id, 0)
    # Both are whole again.
    assert [f.path for f in store.list("run")] == ["run/000002-aaaaaaaa.json"]
    assert store.read("run.json") == store.read("run/000002-aaaaaaaa.json")
    for each in ("run.json", "run/000002-aaaaaaaa.json"):
        store.write(each, broken)
    with pytest.raises(StorageError, match="is damaged"):
        open_run(files(dataset), store)


@pytest.mark.parametrize(("after", "taken"), [("listing-", False), ("run.json", True)])
def test_a_driver_killed_while_it_takes_new_data_leaves_a_run_that_goes_on(
    dataset: Path, after: str, taken: bool
) -> None:
    store = Store.open(str(dataset), "run")
    first = open_run(files(dataset), store)
    add(dataset, "train", "a")
    with pytest.raises(WorkerError, match="rank 0 died"):
        in_workers(1, prepare_and_die, files(dataset, grow_dataset=True), after)
    resumed = open_run(files(dataset), store)
    assert resumed.order.pairs == (4 if taken else 3)
    assert (resumed.order == first.order) is not taken
    grown = open_run(files(dataset, grow_dataset=True), store)
    assert (grown.order.pairs, grown.order.lineage.start) == (4, 0)


def test_an_older_raymat_refuses_a_run_with_a_past(dataset: Path) -> None:
    """It would train on by another order: `run.json` says a format that it does not know."""
    store = Store.open(str(dataset), "run")
    open_run(files(dataset), store)
    assert json.loads(store.read("run.json"))["format"] == 3
    add(dataset, "train", "a")
    open_run(files(dataset, grow_dataset=True), store)
    described = json.loads(store.read("run.json"))
    assert (described["format"], described["past"]["eras"][0]["end"]) == (3, 0)
    store.write("run.json", json.dumps(described | {"format": 4}).encode())
    with pytest.raises(StorageError, match="format 4, expected 3"):
        open_run(files(dataset), store)


def test_before_a_run_is_made_longer_or_grows_nobody_else_may_commit(dataset: Path) -> None:
    store = Store.open(str(dataset), "run")
    asked: list[str] = []
    for options in ({}, {}, {"epochs": 9}, {"epochs": 9}, {"epochs": 9, "grow_dataset": True}):
        open_run(
            files(dataset, **options),
            store,
            tenure=Awaited(lambda options=options: asked.append(str(options))),  # type: ignore[misc]
        )
    assert asked == ["{'epochs': 9}", "{'epochs': 9, 'grow_dataset': True}"]
