"""A killed and resumed run is an undisturbed run: the short version of tests/chaos/test_exactness.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit import killed_run, rows, starts, undisturbed

from raymat.tools import diff


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "world"), [("base", 2), ("refine", 3)])
def test_a_run_whose_workers_were_killed_ends_with_the_weights_of_an_undisturbed_one(
    cluster: None, tmp_path: Path, stage: Any, world: int
) -> None:
    whole = undisturbed(stage, tmp_path, world)
    broken, killer = killed_run(stage, tmp_path, world, seed=1, kills=2)
    assert killer.killed
    assert len(starts(broken)) == 1 + len(killer.killed)
    assert diff.main([whole.url, broken.url]) == 0
    assert rows(broken) == rows(whole)
    assert [row[0] for row in rows(broken)] == list(range(1, 41))
    assert rows(broken, "valid") == rows(whole, "valid")
