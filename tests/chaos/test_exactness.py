"""Kills at random moments change no bit: both stages, two and three workers, five seeds each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raymat.cli import diff
from raymat.storage.store import Store
from tests.support.kit import killed_run, rows, undisturbed

KILLS = 3


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exactness")


@pytest.fixture(scope="module")
def whole_runs() -> dict[tuple[str, int], Store]:
    return {}


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("stage", ["base", "refine"])
def test_kills_at_random_moments_change_no_bit(
    cluster: None,
    storage: Path,
    whole_runs: dict[tuple[str, int], Store],
    stage: Any,
    world: int,
    seed: int,
) -> None:
    if (stage, world) not in whole_runs:
        whole_runs[stage, world] = undisturbed(stage, storage, world)
    whole = whole_runs[stage, world]
    broken, killer = killed_run(stage, storage, world, seed, KILLS)
    assert killer.killed
    assert diff.main([whole.url, broken.url]) == 0
    assert rows(broken) == rows(whole)
    assert rows(broken, "valid") == rows(whole, "valid")
