"""All runs of a storage root, read side by side."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from raymat.analysis.runs.summary import RunReader, RunSummary
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import open_each
from raymat.train.run.lease.entries import PACE, Pace

_THREADS = 16
_PATIENCE = RetryPolicy(total=10.0)
"""For one run: a storage that hangs must not hold up the others."""


def survey_runs(storage_url: str, pace: Pace = PACE) -> list[RunSummary]:
    """Read where all runs of a storage stand, those that were active last first, folders that are no run at the end.

    A driver that died is known when its lease has not been renewed for the time to live (20 s), unless another object of
    the storage shows it before; one that lives, when it renews (every 5 s).

    Raises:
        StorageError: the storage itself cannot be read.
    """
    readers = [RunReader(store, pace) for store in open_each(storage_url, retry=_PATIENCE)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="run") as pool:
        found = list(pool.map(RunReader.read, readers))
        pause = 0.0  # what the other runs have shown meanwhile may suffice
        while unclear := [i for i, each in enumerate(found) if each.state == "unclear"]:
            time.sleep(pause)
            pause, now = pace.look, max(each.active for each in found)
            again = pool.map(lambda i: readers[i].look_again(found[i], now), unclear)  # noqa: B023
            for i, each in zip(unclear, list(again), strict=True):
                found[i] = each
    return sorted(found, key=lambda each: (each.steps is None, -each.active, each.name))
