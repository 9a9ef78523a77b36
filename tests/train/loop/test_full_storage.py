"""Storage with room for two checkpoints and a half: it fills, is pruned, and the run ends as one that had room.

A disk, and a bucket with a quota.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from raymat.checkpoint.catalog import scan
from raymat.cli.verify import verify
from raymat.config.run import RunConfig
from raymat.distributed.world import World
from raymat.errors import StorageError
from raymat.storage.store import Store
from raymat.train.loop import startup
from raymat.train.loop.trainer import Outcome
from raymat.train.observability.events import read_events
from tests.support import runs
from tests.support.fault_proxy import FaultProxy
from tests.support.kit import rows
from tests.support.mounts import small_disk
from tests.support.s3 import S3Server
from tests.support.small import build_small
from tests.support.workers import in_workers

STEPS, KEEP = 10, 3
FIT = 4
"""The step whose checkpoint is the second, which fits; the third does not."""
REST = 200_000
"""Bytes for all that is no checkpoint, with the rest of each file's last page."""

Raymat = Callable[..., tuple[int, list[str], list[str]]]


def _train(world: World, config: RunConfig, environment: Mapping[str, str]) -> Outcome:
    os.environ.update(environment)  # the server that forks workers has the one of its first use
    startup.build = build_small  # type: ignore[assignment]
    feed = runs.Feed(config, world, {}, patient=True)
    feed.patient_to = (
        FIT  # a slow storage would have the saves of so short a run joined, and never fill
    )
    return runs.train(world, config, feed=feed)


def _config(storage: Any) -> RunConfig:
    return runs.tiny(
        storage,
        "run",
        steps=STEPS,
        keep=KEEP,
        valid_examples=0,
        log_images_interval=10**6,
        max_checkpoint_age="2s",
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = _config(tmp_path_factory.mktemp("roomy"))
    in_workers(2, _train, config, {})
    return config


def _room(config: RunConfig) -> int:
    return scan(runs.store_of(config))[0].bytes * 5 // 2 + REST


def _train_and_prune(config: RunConfig, raymat: Raymat, **environment: str) -> list[str]:
    """Train until the run is complete, and prune whenever it is stopped by storage that is full; what stopped it."""
    url, stopped = f"{config.storage}/{config.name}", list[str]()
    while isinstance(found := in_workers(2, _train, config, environment)[0], StorageError):
        stopped.append(found.line)
        assert len(stopped) < STEPS
        torn = [s.id for s in scan(runs.store_of(config)) if s.state == "torn"]
        pruned = raymat("prune", url, "--keep", "1", "--yes")
        assert pruned[0] == 0, pruned
        (left,) = scan(runs.store_of(config))
        assert left.state == "committed"
        told = [e for e in read_events(runs.store_of(config)) if e["kind"] == "delete"]
        assert set(map(str, torn)) <= {name for event in told for name in event["checkpoints"]}
    assert found.step == STEPS
    return stopped


def _require_equal(config: RunConfig, undisturbed: RunConfig) -> None:
    mine, others = runs.checkpoints(config), runs.checkpoints(undisturbed)
    assert runs.differences(mine[STEPS], others[STEPS]) == []
    assert rows(runs.store_of(config)) == rows(runs.store_of(undisturbed))
    assert verify(f"{config.storage}/{config.name}").code == 0


@pytest.mark.slow
def test_a_disk_that_fills_is_pruned_and_the_run_ends_right(
    undisturbed: RunConfig, raymat: Raymat, tmp_path: Path
) -> None:
    with small_disk(tmp_path, _room(undisturbed)) as folder:
        config = _config(folder)
        stopped = _train_and_prune(config, raymat)
        assert stopped
        assert all("no space left there" in line for line in stopped)
        _require_equal(config, undisturbed)


class Quota:
    """A bucket's quota, as Ceph keeps it: what would go above it is refused as a whole."""

    def __init__(self, bucket: Store, room: int) -> None:
        self._bucket, self._room = bucket, room
        self.refused = 0

    def __call__(self, request: Any) -> tuple[int, str] | None:
        if request.method != "PUT" or not request.length:
            return None
        if sum(file.size for file in self._bucket.list()) + request.length <= self._room:
            return None
        self.refused += 1
        return 403, "QuotaExceeded"


@pytest.mark.slow
def test_a_bucket_whose_quota_is_reached_is_pruned_and_the_run_ends_right(
    undisturbed: RunConfig, raymat: Raymat, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota = Quota(s3_server.store("quota"), _room(undisturbed))
    with FaultProxy(s3_server) as proxy:
        proxy.refuses = quota
        environment = s3_server.environment | {"AWS_ENDPOINT_URL": proxy.endpoint}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        config = _config("s3://quota/runs")
        stopped = _train_and_prune(config, raymat, **environment)
        assert stopped
        assert all("no space left there" in line for line in stopped)
        assert all("free some, a run can keep fewer checkpoints" in line for line in stopped)
        assert quota.refused
        _require_equal(config, undisturbed)
