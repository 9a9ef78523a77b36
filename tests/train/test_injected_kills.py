"""Workers killed inside snapshot, write, commit and prune: the short version of tests/chaos/test_injected_kills_long.py."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.killcases import Kitchen, Tally, draw, places, serve, spread, undisturbed

CASES = 24
SEED = 20


@pytest.fixture
def kitchen() -> Iterator[Kitchen]:
    # In memory where that is possible: the disk is no part of what a kill can spoil.
    parent = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(tempfile.mkdtemp(prefix="rm", dir=parent))
    kitchen = Kitchen(folder)
    yield kitchen
    kitchen.stop()
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_worker_killed_at_any_point_resumes_from_the_newest_commit_to_the_bit(
    kitchen: Kitchen,
) -> None:
    wholes = {world: undisturbed(kitchen, world) for world in (1, 2)}
    draws = random.Random(SEED)
    everywhere = places(wholes)
    cases = draw(wholes, spread(everywhere, CASES, draws), draws, "short")
    tally = Tally()
    serve(kitchen, wholes, cases, tally)
    print(f"seed {SEED}: {tally}; missed {tally.missed}")
    assert {point.partition("/")[0] for _, _, point in tally.killed} == {
        point.partition("/")[0] for _, _, point in everywhere
    }
