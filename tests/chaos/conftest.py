"""Clusters of several nodes, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from raymat.cluster.blackboard import Blackboard
from raymat.cluster.ray_internals import apply_settings
from tests.support.nodes import Nodes


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster of its own, in place of the one that other tests of this process share."""
    ray.shutdown()
    apply_settings()
    nodes = Nodes()
    yield nodes
    nodes.stop()


@pytest.fixture
def boards_made(monkeypatch: pytest.MonkeyPatch) -> list[Blackboard]:
    """The boards of the runs that are driven from here, the newest last: what a driver puts there, a test can, too."""
    made: list[Blackboard] = []
    start = Blackboard.start

    def start_and_tell() -> Blackboard:
        made.append(start())
        return made[-1]

    monkeypatch.setattr(Blackboard, "start", start_and_tell)
    return made
