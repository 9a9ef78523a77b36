"""One small Ray for the tests of this folder, in a temporary folder of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from raymat.cluster.trainer import apply_settings


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """A local Ray with room for four workers and their read tasks, whatever this machine has."""
    apply_settings()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=10**9,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
