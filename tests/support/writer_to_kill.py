"""A process that writes checkpoints in a loop until it is killed; started by test_kills.py.

Reads lines "URL ATTEMPT ANNOUNCEMENTS OPTIONS" and forks a writer for each, whose process id it
prints: importing torch once is enough for many kills.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from raymat.checkpoint.catalog import newest, scan
from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.retention import RetentionPolicy, plan, prune
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot, SnapshotBuffer
from raymat.distributed.world import World
from raymat.storage.store import Store

WORLD = 2


def state(step: int) -> dict[str, torch.Tensor]:
    """Everything in it says which step it is of."""
    return {f"t{i}": torch.full((20_000 + i,), float(step * 100 + i)) for i in range(4)}


def write_for_ever(url: str, attempt: int, announcements: str, options: dict[str, str]) -> None:
    """Commit step after step from the newest on, announce each commit, prune."""
    store = Store.open(url, "run", options=options)
    buffer = SnapshotBuffer()
    found = newest(store, "r")
    step = found[0].step if found is not None else 0
    announce = os.open(announcements, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        step += 1
        snapshot = Snapshot.take(step, state(step), {"step": step}, buffer)
        for rank in range(WORLD):
            write_share(store, CheckpointId(step, attempt), snapshot, World(rank, WORLD), "r")
        os.write(announce, f"{step} {attempt}\n".encode())
        prune(store, plan(scan(store), RetentionPolicy(keep=2), attempt=attempt).delete)


def main() -> None:
    """Fork a writer for each line."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        url, attempt, announcements, options = line.split(" ", 3)
        child = os.fork()
        if child == 0:
            write_for_ever(url, int(attempt), announcements, json.loads(options))
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    main()
