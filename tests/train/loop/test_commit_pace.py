"""When checkpoints come if that is left to the run, and which are taken for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raymat.checkpoint.catalog import scan
from raymat.config.run import RunConfig
from raymat.distributed.world import World
from raymat.train.loop import startup
from raymat.train.observability.events import read_events
from raymat.train.run.commit_interval import Costs, Experience, best_steps, next_interval
from tests.support import runs
from tests.support.small import build_small
from tests.support.workers import WorkerError, in_workers


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "build", build_small)


def train_small(world: World, config: RunConfig, kill: dict[int, int] | None = None) -> Any:
    startup.build = build_small  # type: ignore[assignment]
    return runs.train(world, config, feed=runs.Feed(config, world, kill or {}))


def train_patiently(config: RunConfig, interval: int) -> None:
    feed = runs.Feed(config, World(), {}, patient=True)
    feed.interval = interval
    runs.train(World(), config, feed=feed)


def free(tmp_path: Path, name: str, **options: Any) -> RunConfig:
    defaults = {"checkpoint_interval": "auto", "valid_examples": 0, "log_images_interval": 10**6}
    return runs.tiny(tmp_path, name, **(defaults | options))


def events(config: RunConfig, kind: str) -> list[dict[str, Any]]:
    return [e for e in read_events(runs.store_of(config)) if e["kind"] == kind]


def committed(config: RunConfig) -> list[int]:
    return sorted(s.id.step for s in scan(runs.store_of(config)) if s.state == "committed")


def test_the_first_checkpoints_show_what_one_costs_and_set_the_interval(tmp_path: Path) -> None:
    config = free(tmp_path, "run", steps=110, log_loss_interval=5)
    train_small(World(), config)
    assert committed(config)[:2] == [20, 40]
    first = events(config, "interval")[0]
    costs = Costs(step=first["step_seconds"], stall=first["stall"], save=first["save"])
    known = Experience(worker_seconds=first["every"] - 8 * 3600.0)
    assert first["step"] == 40
    assert first["interval"] == next_interval(20, best_steps(costs, known, workers=1)) > 20
    assert min(costs.step, costs.stall, costs.save, known.worker_seconds) > 0
    assert committed(config)[2] == min(110, 40 + first["interval"])


def test_losses_without_notice_are_counted_and_kept_with_the_run(tmp_path: Path) -> None:
    config = free(tmp_path, "run", steps=60, log_loss_interval=5)
    for at in (5, 25, 50):  # at 5 nothing is committed yet
        with pytest.raises(WorkerError):
            in_workers(2, train_small, config, {1: at})
    in_workers(2, train_small, config)
    last = runs.checkpoints(config)[60].extra["attempts"]
    assert (last["losses"], last["noticed"]) == (3, False)
    assert last["worker_seconds"] > 0
    undisturbed = free(tmp_path, "undisturbed", steps=60, log_loss_interval=5)
    in_workers(2, train_small, undisturbed)
    a, b = (runs.checkpoints(c)[60] for c in (config, undisturbed))
    assert runs.differences(a, b) == []


def test_an_epochs_end_commits_unless_it_comes_within_a_tenth_of_the_interval(
    tmp_path: Path,
) -> None:
    # Held back, the feed lets each save end: none is left out.
    ends = free(tmp_path, "ends", steps=10, epoch_examples=20)
    train_patiently(ends, 5)
    assert committed(ends) == [5, 10]
    often = free(tmp_path, "often", steps=6, epoch_examples=4)
    train_patiently(often, 2)
    assert committed(often) == [2, 4, 6]


def test_milestones_are_taken_and_kept_whatever_the_interval(tmp_path: Path) -> None:
    config = free(tmp_path, "run", steps=10, keep=1, keep_every=3)
    train_small(World(), config)
    assert committed(config) == [3, 6, 9, 10]


def test_the_first_checkpoint_at_a_loss_is_taken_and_kept(tmp_path: Path) -> None:
    options = {"valid_interval": 2, "valid_examples": 3, "steps": 12}
    plain = free(tmp_path, "plain", **options)
    train_small(World(), plain)
    losses = {e["step"]: e["loss"] for e in events(plain, "validation") if e["step"]}
    threshold = min(list(losses.values())[:4])
    first = next(step for step, loss in losses.items() if loss <= threshold)
    config = free(tmp_path, "run", keep=1, checkpoint_at_loss=f"{threshold}", **options)
    train_small(World(), config)
    assert first in committed(config)
    assert first not in committed(plain)
    assert committed(config)[-1] == 12
