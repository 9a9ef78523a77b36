"""Runs that several tests of the training loop look at; each is made once."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import pytest

from raymat.config.run import RunConfig
from raymat.train.loop.trainer import Outcome
from tests.support import runs
from tests.support.workers import WorkerError, in_workers


@dataclass(frozen=True)
class Pair:
    """A run that nobody touched, and the same one with a worker killed in its 5th of 6 steps and then continued."""

    undisturbed: RunConfig
    killed: RunConfig
    outcome: Outcome
    """Of the killed run's second attempt."""


def make_pair(folder: Path, world: int, stage: str, **options: object) -> Pair:
    options = {"steps": 6, "checkpoint_interval": 3, "valid_interval": 3} | options
    undisturbed = runs.tiny(folder, f"{stage}-{world}", stage, **options)
    killed = runs.tiny(folder, f"{stage}-{world}-killed", stage, **options)
    in_workers(world, runs.train, undisturbed)
    with pytest.raises(WorkerError):
        in_workers(world, functools.partial(runs.train, patient=True), killed, {world - 1: 4})
    return Pair(undisturbed, killed, in_workers(world, runs.train, killed)[0])


@pytest.fixture(scope="session")
def pair_of_three(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Base, 3 workers."""
    return make_pair(tmp_path_factory.mktemp("three"), 3, "base")
