"""How long a run is, and how often it saves and validates, where nothing says so; a run keeps what it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raymat.config.run import build
from raymat.config.settled import with_pace
from raymat.config.values import Interval
from raymat.storage.store import Store
from raymat.train.run.lease.entries import name_after
from raymat.train.run.lease.tenure import Undisputed
from raymat.train.run.open_run import OpenedRun, open_run
from raymat.train.run.run_file import read_run, write_run
from tests.support.datakit import write_dataset

FOLDERS = {"dataset": "d", "backgrounds": "b"}


def opened(folder: Path, **options: Any) -> OpenedRun:
    """A run on 13 pairs."""
    places = dict(zip(FOLDERS, (f"{folder}/data", f"{folder}/walls"), strict=True))
    options = {"name": "run", "storage": str(folder), "device": "cpu"} | places | options
    config = build("base", options)
    return open_run(config, Store.open(str(folder), "run"))


def pace(run: OpenedRun) -> tuple[int, str, int | None]:
    config = run.config
    saves = str(config.checkpoint.checkpoint_interval)
    return run.order.total_steps, saves, config.log.valid_interval


@pytest.mark.parametrize(
    ("stage", "pairs", "expected"),
    [
        ("base", 5, (None, 4000, 400, 400)),
        ("base", 13, (None, 4000, 400, 400)),
        ("base", 40, (None, 4000, 400, 400)),
        ("base", 3999, (None, 4000, 400, 400)),
        ("base", 4000, (8.0, None, 400, 400)),
        ("base", 25_000, (8.0, None, 2500, 2000)),
        ("base", 240_000, (8.0, None, 5000, 2000)),
        ("refine", 13, (None, 1000, 100, 100)),
        ("refine", 240_000, (1.0, None, 2000, 1000)),
    ],
)
def test_a_run_of_few_pairs_is_as_long_as_one_of_4000_and_validates_10_times(
    stage: Any, pairs: int, expected: tuple[float | None, ...]
) -> None:
    config = with_pace(build(stage, {"name": "r"} | FOLDERS), pairs)
    length, log = config.length, config.log
    found = (length.epochs, length.steps, log.valid_interval, log.log_images_interval)
    assert found == expected


def test_what_is_given_is_left_as_it_is() -> None:
    given = {"epochs": 8.0, "checkpoint_interval": 5000, "valid_interval": 700}
    config = with_pace(build("base", {"name": "r"} | FOLDERS | given), 13)
    assert (config.length.epochs, config.length.steps) == (8.0, None)
    assert (config.checkpoint.checkpoint_interval, config.log.valid_interval) == (
        Interval(5000),
        700,
    )
    units = with_pace(build("base", {"name": "r", "epoch_examples": 100} | FOLDERS), 13)
    assert (units.length.epochs, units.length.steps) == (8.0, None)


def test_made_pictures_have_their_epochs_and_short_runs_their_quiet() -> None:
    config = with_pace(build("base", {"name": "r", "synthetic": 200}), 200)
    assert (config.length.epochs, config.length.steps) == (8.0, None)
    assert (config.checkpoint.checkpoint_interval, config.log.valid_interval) == (Interval(), 100)
    trial = with_pace(build("base", {"name": "r", "steps": 8} | FOLDERS), 13)
    assert (trial.checkpoint.checkpoint_interval, trial.log.valid_interval) == (Interval(), 100)


def test_a_new_run_says_that_its_pairs_are_few_and_a_resumed_one_keeps_its_pace(
    tmp_path: Path,
) -> None:
    write_dataset(str(tmp_path), pairs=13)
    first = opened(tmp_path)
    assert pace(first) == (4000, "auto", 400)
    assert [change.line for change in first.changes] == [
        "13 pairs, fewer than 4000: the run has 4000 steps, as with 4000; --epochs or --steps set another length"
    ]
    again = opened(tmp_path)
    assert (again.resumed, pace(again), again.changes) == (True, (4000, "auto", 400), ())
    longer = opened(tmp_path, steps=9000, checkpoint_interval=50)
    assert pace(longer) == (9000, "50", 400)
    assert pace(opened(tmp_path)) == (9000, "auto", 400)


def test_a_run_that_an_older_version_began_keeps_its_8_epochs_of_few_pairs(tmp_path: Path) -> None:
    write_dataset(str(tmp_path), pairs=13)
    opened(tmp_path)
    store = Store.open(str(tmp_path), "run")
    stored = read_run(store)
    assert stored is not None
    older = {"epochs": 8.0, "steps": None, "checkpoint_interval": 5000, "valid_interval": 5000}
    changed = stored | {"config": stored["config"] | older}
    write_run(store, changed, Undisputed(name_after(store, ())))
    assert pace(opened(tmp_path)) == (13, "5000", 5000)
