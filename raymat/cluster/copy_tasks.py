"""Tasks of `raymat prepare` on the Ray cluster that there is."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from raymat.cluster.driver.cluster_setup import address_to_join, installed_packages_first
from raymat.cluster.driver.say import say
from raymat.data.preparation.copy_job import CopyJob, CopyOutcome, CopyPlace
from raymat.errors import ClusterError, RaymatError, first_line

PLACES = 32
"""Pairs or backgrounds of a task: some seconds of work."""
_AHEAD = 2
"""Tasks that wait, for each core."""


def copier_on_cluster() -> Callable[[CopyJob, Sequence[CopyPlace]], Iterator[CopyOutcome]] | None:
    """Join the cluster that RAY_ADDRESS names or `ray start` started here, and return what copies on it; None without one.

    Raises ClusterError if RAY_ADDRESS names one that does not answer.
    """
    if not ray.is_initialized():
        address = address_to_join()
        if address is None:
            return None
        say(f"copying on the Ray cluster at {address}")
        with installed_packages_first():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    return copy_on_cluster


def copy_on_cluster(job: CopyJob, places: Sequence[CopyPlace]) -> Iterator[CopyOutcome]:
    """Yield what becomes of the places, in their order, copied by tasks of one core each.

    Raises:
        DataError, StorageError: as `CopyJob.copy`. ClusterError: tasks died again and again.
    """
    shared = ray.put(job)
    parts = (places[i : i + PLACES] for i in range(0, len(places), PLACES))
    running: deque[Any] = deque()
    task = ray.remote(num_cpus=1, max_retries=3)(_copy)
    try:
        for part in parts:
            running.append(task.remote(shared, part))
            if len(running) > _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1))):
                yield from _result(running.popleft())
        while running:
            yield from _result(running.popleft())
    finally:
        for left in running:
            with contextlib.suppress(RayError):
                ray.cancel(left)


def _copy(job: CopyJob, places: Sequence[CopyPlace]) -> list[CopyOutcome]:
    return [job.copy(place) for place in places]


def _result(task: Any) -> list[CopyOutcome]:
    try:
        found: list[CopyOutcome] = ray.get(task)
    except RayTaskError as error:
        if isinstance(error.cause, RaymatError):
            raise error.cause from None
        raise
    except RayError as error:
        raise ClusterError(
            f"a copying task failed: {first_line(error)}; the same command goes on"
        ) from error
    return found
