"""What every test stands on: one thread, a Ray that stays on its own, short paths for Ray's sockets."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports torch or ray, which read the environment once.
os.environ |= {
    # Few cores are shared by many processes, and the number of threads changes the last bits of a sum.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Where a test takes two threads all the same, one that waits for the other leaves its core to the tests beside it.
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without it ray.init() warns about a change to come, and warnings are errors here.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Workers' lines as they were printed, for tests that read them.
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    # Ray's workers give way to everything else on the machine (nice 15): a busy test beside them stops them for minutes.
    "RAY_worker_niceness": "0",
    # Without credentials s3fs asks the metadata service of a cloud that is not there, and waits.
    "AWS_EC2_METADATA_DISABLED": "true",
}
# A test must never join a cluster that happens to run on this machine, nor may others find a test's: Ray looks for clusters
# in its temporary folder. Short, since Ray's socket paths end at 107 bytes.
os.environ.pop("RAY_ADDRESS", None)
os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="rm", dir="/tmp")
atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)


TESTS = Path(__file__).parent
LONGEST_FIRST = (
    "cluster/driver/test_bad_input.py",
    "cluster/driver/test_wrong_starts.py",
    "cluster/test_ray_internals.py",
    "checkpoint/test_s3_faults.py",
    "train/loop/test_trainer.py",
    "cluster/driver/test_job.py",
    "cluster/driver/test_machine_watch.py",
    "cluster/driver/test_folder_gone.py",
    "chaos/test_faults.py",
    "cluster/driver/test_stop_signals.py",
    "cluster/controller/test_prestart.py",
    "cluster/spot/test_spot_watch.py",
    "train/loop/test_background_validation.py",
    "train/loop/test_injected_kills.py",
    "checkpoint/test_local_cache.py",
    "cluster/driver/test_launch.py",
    "train/run/test_lease.py",
    "train/loop/test_accumulate.py",
    "train/loop/test_preemption.py",
    "train/run/test_retraining.py",
    "export/test_formats.py",
    "cli/test_average.py",
    "model/test_golden.py",
)
"""Files that the processes of a test run take first: all would wait for a long one that is begun last."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What collecting makes is kept to the end: without this, the garbage collector goes through it for seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, in one order for all processes, and skip tests that need a GPU where there is none."""
    place = {TESTS / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    _skip_without_gpu(items)


def _skip_without_gpu(items: list[pytest.Item]) -> None:
    """Import torch only if such a test was collected."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a path short enough for Ray's sockets, whose paths end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rm", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def ray_at_the_end() -> Iterator[None]:
    """Ends whatever Ray this process has when all tests are done."""
    yield
    import ray

    ray.shutdown()


@pytest.fixture
def cluster(ray_at_the_end: None) -> None:
    """A local Ray with room for four workers and their read tasks, whatever this machine has. Tests share it; after
    one that had another in its place it is started anew."""
    import ray

    from raymat.cluster.ray_internals import apply_settings

    if ray.is_initialized():
        return
    apply_settings()
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=10**9,
        log_to_driver=False,
    )


from tests.support.made_run import local, made, raymat  # noqa: E402, F401
from tests.support.s3 import s3_server  # noqa: E402, F401  (after the environment is set: it imports fsspec)
