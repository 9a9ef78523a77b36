"""Workers killed inside snapshot, write, commit and prune: the short version of tests/chaos/test_injected_kills_long.py."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.killcases import (
    Kitchen,
    Tally,
    draw,
    kitchen_in_memory,
    places,
    serve,
    spread,
    undisturbed,
)

CASES = 18
SEED = 20


@pytest.fixture
def kitchen() -> Iterator[Kitchen]:
    with kitchen_in_memory() as kitchen:
        yield kitchen


@pytest.mark.slow
def test_a_worker_killed_at_any_point_resumes_from_the_newest_commit_to_the_bit(
    kitchen: Kitchen,
) -> None:
    wholes = {world: undisturbed(kitchen, world) for world in (1, 2)}
    draws, tally = random.Random(SEED), Tally()
    everywhere = places(wholes)
    serve(kitchen, wholes, draw(wholes, spread(everywhere, CASES, draws), draws, "short"), tally)
    print(f"seed {SEED}: {tally}")
    assert tally.cases >= CASES - 2
    groups = {point.partition("/")[0] for _, _, point in everywhere}
    assert {point.partition("/")[0] for _, _, point in tally.killed} == groups
    assert groups == {
        *("step", "snapshot", "flush", "metrics", "tensorboard", "share", "shard", "state"),
        *("manifest", "commit", "prune", "prune-manifests", "events", "restore", "replay", "end"),
        "abandoned",
    }
