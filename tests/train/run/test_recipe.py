"""A run keeps the recipe that it was begun with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raymat.analysis.run_pictures import RunPictures
from raymat.config.flags import parse_run
from raymat.config.run import build, from_dict, to_dict
from raymat.distributed.batchnorm_kernels import FUSED, PLAIN
from raymat.errors import ConfigError, NewerFormatError
from raymat.storage.store import Store
from raymat.train.optim.forward import ForwardPass
from raymat.train.run.lease.entries import name_after
from raymat.train.run.lease.tenure import Undisputed
from raymat.train.run.open_run import OpenedRun, open_run
from raymat.train.run.run_file import read_run, write_run
from tests.support import runs

CPU = torch.device("cpu")


def opened(folder: Path, **options: Any) -> OpenedRun:
    config = runs.tiny(folder, "run", precision="fp32", **options)
    return open_run(config, Store.open(str(folder), "run"))


def as_before_recipes(folder: Path) -> None:
    """Make the run's files those of a version that knew none."""
    store = Store.open(str(folder), "run")
    stored = read_run(store)
    assert stored is not None
    del stored["config"]["recipe"], stored["config"]["batch_norm"]
    write_run(store, stored, Undisputed(name_after(store, ())))


def test_a_new_run_has_the_newest_recipe_and_keeps_it(tmp_path: Path) -> None:
    assert opened(tmp_path).config.data.recipe == "4"
    stored = read_run(Store.open(str(tmp_path), "run"))
    assert stored is not None
    assert stored["config"]["recipe"] == "4"
    run = opened(tmp_path)
    assert (run.resumed, run.config.data.recipe) == (True, "4")


@pytest.mark.parametrize("asked", [{}, {"recipe": "1"}])
def test_a_run_from_before_there_were_recipes_goes_on_with_the_first(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    opened(tmp_path)
    as_before_recipes(tmp_path)
    run = opened(tmp_path, **asked)
    assert (run.resumed, run.config.data.recipe) == (True, "1")
    assert ForwardPass.of(run.config, CPU).recipe == "1"


def test_a_run_keeps_its_batch_norm_which_is_plain_from_before_there_was_another(
    tmp_path: Path,
) -> None:
    first = opened(tmp_path / "new").config
    assert (first.optim.batch_norm, opened(tmp_path / "new").config.optim.batch_norm) == (
        ("fused", "fused")
    )
    opened(tmp_path / "old")
    as_before_recipes(tmp_path / "old")
    old = opened(tmp_path / "old").config
    ways = [ForwardPass.of(config, torch.device("cuda")).kernels for config in (first, old)]
    assert ways == [FUSED, PLAIN]
    assert ForwardPass.of(first, CPU).kernels is PLAIN
    with pytest.raises(ConfigError, match="--batch-norm was plain, is fused; use the old one"):
        opened(tmp_path / "old", batch_norm="fused")


def test_a_run_that_is_made_longer_or_grows_keeps_its_recipe(tmp_path: Path) -> None:
    opened(tmp_path)
    as_before_recipes(tmp_path)
    more = opened(tmp_path, steps=12, synthetic=30, grow_dataset=True)
    assert (more.order.total_steps, more.config.data.recipe) == (12, "1")
    assert opened(tmp_path, steps=12, synthetic=30).config.data.recipe == "1"


def test_a_run_can_be_begun_with_an_older_recipe(tmp_path: Path) -> None:
    assert opened(tmp_path, recipe="1").config.data.recipe == "1"
    assert opened(tmp_path).config.data.recipe == "1"


@pytest.mark.parametrize(("begun", "asked"), [("1", "2"), ("3", "4"), ("4", "1")])
def test_a_run_cannot_change_its_recipe(tmp_path: Path, begun: str, asked: str) -> None:
    opened(tmp_path, recipe=begun)
    with pytest.raises(ConfigError, match=f"--recipe was {begun}, is {asked}; use the old one"):
        opened(tmp_path, recipe=asked)


def test_a_run_of_a_recipe_that_is_not_known_is_a_newer_raymats() -> None:
    flat = to_dict(build("base", {"name": "run", "synthetic": 4, "steps": 1}))
    with pytest.raises(
        NewerFormatError, match="by recipe 5, this raymat knows 1, 2, 3, 4: use the one"
    ):
        from_dict(flat | {"recipe": "5"})


def test_an_average_sees_pictures_by_its_runs_recipe(tmp_path: Path) -> None:
    seen = {}
    for recipe in ("1", "2"):
        config = opened(tmp_path / recipe, recipe=recipe).config
        (first,) = RunPictures.of(config).train(4, CPU)
        seen[recipe] = first
    assert torch.equal(seen["1"].src, seen["2"].src)
    assert not torch.equal(seen["1"].bgr, seen["2"].bgr)


def test_flags_and_files_name_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: run\nsynthetic: 4\nsteps: 1\nrecipe: 1\n")
    argv = ["--config", f"{tmp_path}/run.yaml"]
    assert parse_run("base", argv).data.recipe == "1"
    assert parse_run("base", [*argv, "--recipe", "2"]).data.recipe == "2"
    with pytest.raises(ConfigError, match="--recipe: expected one of 1, 2, 3, 4, got '5'"):
        parse_run("base", [*argv, "--recipe", "5"])
