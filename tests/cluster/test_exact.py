"""A killed and resumed run is an undisturbed run: the short version of tests/chaos/test_exactness.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import killed_run, rows, starts, undisturbed

from raymat.tools import diff

STEPS = 21


@pytest.mark.slow
def test_a_run_whose_worker_was_killed_ends_with_the_weights_of_an_undisturbed_one(
    cluster: None, tmp_path: Path
) -> None:
    whole = undisturbed("base", tmp_path, 2, steps=STEPS)
    broken, killer = killed_run("base", tmp_path, 2, seed=3, kills=1, steps=STEPS)
    assert killer.killed
    assert len(starts(broken)) == 1 + len(killer.killed)
    assert diff.main([whole.url, broken.url]) == 0
    assert rows(broken) == rows(whole)
    assert [row[0] for row in rows(broken)] == list(range(1, STEPS + 1))
    assert rows(broken, "valid") == rows(whole, "valid")
