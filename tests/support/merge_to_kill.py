"""Merges that die by SIGKILL before their n-th change of a folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from raymat.storage.store import Store
from raymat.train.observability.merging import events_merge
from raymat.train.observability.merging.curves_merge import CurvesMerge, clear_replayed
from raymat.train.observability.merging.events_merge import EventsMerge
from raymat.train.observability.merging.metrics_merge import MetricsMerge

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.merge_to_kill"])

MERGES: dict[str, Callable[[Store], Any]] = {
    "metrics": lambda store: merge_all(MetricsMerge(store, 9)),
    "events": lambda store: merge_all(EventsMerge(store, 9)),
    "tensorboard": lambda store: merge_all(CurvesMerge(store, 9)),
    "restart": lambda store: clear_replayed(store, 10, 301),
}


def merge_all(merge: Callable[[], bool]) -> None:
    """Merge until nothing is left to merge."""
    while merge():
        pass


def died(folder: str, kind: str, change: int) -> bool:
    """Run a merge in a process that dies before its `change`-th rename or removal, from 1; whether it came that far."""
    process = _CONTEXT.Process(target=_merge_and_die, args=(folder, kind, change))
    process.start()
    process.join(30)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _merge_and_die(folder: str, kind: str, change: int) -> None:
    left = change

    def counted(plain: Callable[..., None]) -> Callable[..., None]:
        def changing(*args: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            plain(*args)

        return changing

    os.replace = counted(os.replace)  # type: ignore[assignment]
    os.unlink = counted(os.unlink)  # type: ignore[assignment]
    events_merge.QUIET_SECONDS = 0.0
    MERGES[kind](Store.open(folder, "run"))
