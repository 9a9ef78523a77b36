"""The size of Ray's object store that a run's read tasks need: from its plan and the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from raymat.cluster.driver.say import say
from raymat.cluster.ray_internals import available_bytes
from raymat.cluster.worker.datasource import row_bytes, task_rows
from raymat.config.run import RunConfig

LEAST_BYTES = 2**28
"""Of an own Ray's store: Ray keeps more in it than batches."""
SMALLEST_BYTES = 80 * 2**20
"""Ray starts with no less."""
MACHINE_SHARE = 0.4
"""Of the free memory, at most: workers and decoding need the rest."""


def needed_bytes(config: RunConfig, cpus: float) -> int:
    """Return what a run keeps in the store on `cpus` cores: the blocks of two tasks in each slot, and what workers train on.

    With less, Ray holds tasks back, and decoding is up to three times slower.
    """
    workers = config.workers.workers
    kept = workers.high if config.workers.device == "cuda" else cpus / 2
    slots = config.workers.decode_tasks or math.floor(cpus - kept)
    slots = max(slots, workers.high)  # each has one at least
    side, share = config.data.resolution, math.ceil(config.data.batch_size / workers.high)
    # A batch that is made ready or trained on holds its block.
    return 2 * (slots + workers.high) * task_rows(side, share) * row_bytes(side, share)


def own_store_bytes(config: RunConfig) -> int:
    """Return the size of the store of a Ray that is started here for this run alone."""
    wanted = max(LEAST_BYTES, needed_bytes(config, os.cpu_count() or 1))
    return max(SMALLEST_BYTES, min(wanted, int(MACHINE_SHARE * available_bytes())))


def check_store(config: RunConfig, resources: Mapping[str, float]) -> None:
    """Say so if the cluster's stores are too small for the run."""
    have, need = resources.get("object_store_memory"), needed_bytes(config, resources.get("CPU", 1))
    if have is not None and have < need:
        say(
            f"Ray's object store has {_gib(have)}, the run fills {_gib(need)}: decoding will be slower; start Ray "
            "with a larger --object-store-memory, or train with fewer --decode-tasks"
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
