"""Workers killed at every point of snapshot, write, commit and prune: on a local disk, in a bucket, and under Ray."""

from __future__ import annotations

import json
import random
import secrets
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raymat.cli import diff
from raymat.storage.store import Store
from tests.support.injector import Journal, Kill, train_worker_to_kill
from tests.support.killcases import (
    UNSTEADY,
    Kitchen,
    Tally,
    draw,
    kitchen_in_memory,
    places,
    read_board,
    serve,
    spread,
    undisturbed,
)
from tests.support.kit import rows, tiny
from tests.support.s3 import S3Server

CASES, CASES_IN_A_BUCKET, CASES_WITH_RAY = 210, 16, 10


@pytest.fixture
def seed() -> int:
    """Another one each time; it is printed."""
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")
    return seed


def kill_everywhere(
    kitchen: Kitchen, worlds: tuple[int, ...], count: int, seed: int, first: str = ""
) -> Tally:
    """At least `count` cases that strike, at every place that there is; or so many, whose points end with `first` before
    all others."""
    wholes = {world: undisturbed(kitchen, world) for world in worlds}
    draws, tally = random.Random(seed), Tally()
    everywhere = places(wholes)
    chosen = [place for place in everywhere if first and place[2].endswith(first)]
    chosen += spread(everywhere, count - len(chosen), draws)
    if count >= len(everywhere):
        chosen += [place for place in everywhere if place not in chosen]
    for turn in range(5):
        serve(kitchen, wholes, draw(wholes, chosen, draws, f"turn-{turn}"), tally)
        # How often a thread passes a point may change from run to run: an early death is tried again.
        chosen = [place for place in chosen if place not in tally.killed]
    print(f"seed {seed}: {tally}")
    assert chosen == [], "nobody died there"
    assert tally.cases >= count
    return tally


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_kills_at_every_point_change_no_bit(seed: int) -> None:
    with kitchen_in_memory() as kitchen:
        kill_everywhere(kitchen, (1, 2), CASES, seed)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_kills_at_the_points_of_a_run_in_a_bucket_change_no_bit(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.store("injected")
    kitchen = Kitchen(tmp_path, "s3://injected/runs", **s3_server.options)
    try:
        tally = kill_everywhere(kitchen, (2,), CASES_IN_A_BUCKET, seed, first="/sent")
    finally:
        kitchen.stop()
    uploads = {point for _, _, point in tally.killed if point.endswith("/sent")}
    kinds = ("shard", "state", "manifest", "metrics", "tensorboard", "events")
    assert uploads == {f"{kind}/sent" for kind in kinds}


# With Ray.

OPTIONS: dict[str, Any] = {
    "workers": "2", "steps": 16, "checkpoint_interval": 2, "valid_interval": 8, "keep": 2
}  # fmt: skip
GROUPS = ("snapshot", "share", "shard", "state", "manifest", "metrics", "commit", "prune")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("injected")


def trained(storage: Path, name: str, kills: list[Kill]) -> tuple[Store, Journal]:
    """A run under Ray whose attempts are killed so."""
    from raymat.cluster.driver import launch

    config = tiny("base", storage, name, **OPTIONS)
    (storage / f"{name}.kills").write_text(json.dumps([asdict(kill) for kill in kills]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "train_worker", train_worker_to_kill)
        launch.fit(config)
    return Store.open(config.storage, name), Journal(storage / f"{name}.journal")


@pytest.fixture(scope="module")
def whole(cluster: None, storage: Path) -> tuple[Store, dict[int, Counter[str]]]:
    """A run that nobody touched, and what each rank passed."""
    store, journal = trained(storage, "whole", [])
    passed = {note["rank"]: Counter(note["counts"]) for note in journal.read("passed")}
    assert sorted(passed) == [0, 1]
    return store, passed


def drawn(passed: dict[int, Counter[str]], number: int) -> Kill:
    """The kill of a case: each case of another group of points, of both ranks, in the first half of the run."""
    draws = random.Random(number)
    group = GROUPS[number % len(GROUPS)]
    chosen = [
        (rank, point)
        for rank, points in passed.items()
        for point in sorted(points)
        if point.partition("/")[0].partition("-")[0] == group
    ]
    rank, point = draws.choice(chosen)
    often = 1 if point.startswith(UNSTEADY) else max(1, passed[rank][point] // 2)
    return Kill(point, rank, draws.randint(1, often))


@pytest.mark.chaos
@pytest.mark.parametrize("number", range(CASES_WITH_RAY))
def test_under_ray_a_kill_at_a_point_changes_no_bit(
    storage: Path, whole: tuple[Store, dict[int, Counter[str]]], number: int
) -> None:
    kill = drawn(whole[1], number)
    print(kill)
    store, journal = trained(storage, f"killed-{number}", [kill])
    (note,) = journal.read("killed")
    assert (note["point"], note["rank"]) == (kill.point, kill.rank)
    check_places(journal)
    assert diff.main([whole[0].url, store.url]) == 0
    for kind in ("train", "valid"):
        assert rows(store, kind) == rows(whole[0], kind)
    assert read_board(store).keys() == read_board(whole[0]).keys()


def check_places(journal: Journal) -> None:
    """Both workers went on from one checkpoint, which is none older than what was known to be committed."""
    first, second = journal.read("restored")[:2], journal.read("restored")[2:]
    assert [note["checkpoint"] for note in first] == [None, None]
    assert sorted(note["rank"] for note in second) == [0, 1]
    (resumed,) = {note["checkpoint"] for note in second}
    told = [n["checkpoint"] for n in journal.read("committed") if n["checkpoint"].endswith("-a001")]
    assert not told or (resumed is not None and resumed >= max(told))
