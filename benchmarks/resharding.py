"""What each worker reads, and how much memory it takes, when another number of workers wrote the checkpoint.

Four writers write the state of refine with resnet50 and Adam (about 483 MB); 1, 2, 3 and 6 workers
read it as a restart does, each in a process of its own. Prints for each number of readers the bytes
and requests of the ranks, the peak of a rank's resident memory beyond what it held before, and the
seconds. A floor for both: a rank needs every tensor, so its memory cannot grow by less than the
state, and all ranks together cannot read less than the files.

    python benchmarks/resharding.py [--storage URL]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from raymat.checkpoint.manifest import CheckpointId
from raymat.checkpoint.reader import read_contents
from raymat.checkpoint.shards import write_share
from raymat.checkpoint.snapshot import Snapshot
from raymat.config.sections import ModelConfig
from raymat.distributed.collectives import Group
from raymat.distributed.world import World
from raymat.model.matting import build
from raymat.storage.store import Store
from raymat.train.loop.restore import read_together
from raymat.train.optim.adam import PartAdam

WRITERS = 4
CHECKPOINT = CheckpointId(1000, 1)


class CountingStore:
    """Counts what is read through it."""

    def __init__(self, store: Store) -> None:
        self.store, self.bytes, self.requests = store, 0, 0

    def read_into(self, path: str, offset: int, view: memoryview) -> None:
        self.bytes += len(view)
        self.requests += 1
        self.store.read_into(path, offset, view)


def state() -> dict[str, torch.Tensor]:
    network = build("refine", ModelConfig(backbone="resnet50"), 0)
    tensors = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
    moments = PartAdam(network).state_dict()
    return tensors | {f"optimizer/{name}": tensor for name, tensor in moments.items()}


def write(storage: str) -> int:
    snapshot = Snapshot.take(CHECKPOINT.step, state(), {})
    for rank in range(WRITERS):
        write_share(Store.open(storage, "run"), CHECKPOINT, snapshot, World(rank, WRITERS), "r")
    return sum(t.numel() * t.element_size() for t in snapshot.tensors.values())


def peak() -> int:
    """The most memory that this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read(rank: int, world: int, storage: str, folder: str, results: Any) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/{world}", rank=rank, world_size=world
        )
    store = Store.open(storage, "run")
    counting: Any = CountingStore(store)
    contents = read_contents(store, CHECKPOINT, "r")
    group = Group(World(rank, world), torch.device("cpu"))
    group.gather(rank)
    before, began = peak(), time.perf_counter()
    snapshot, _ = read_together(counting, group, contents)
    seconds = time.perf_counter() - began
    assert len(snapshot.tensors) > 900
    results.put((rank, counting.bytes, counting.requests, peak() - before, seconds))
    group.gather(rank)
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--storage", help="default a temporary folder")
    asked = parser.parse_args().storage
    folder = tempfile.mkdtemp(prefix="raymat-resharding-")
    storage = asked or folder
    try:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            print(f"{pool.apply(write, (storage,)) / 1e6:.1f} MB of tensors, by {WRITERS} writers")
        for world in (1, 2, 3, 6):
            results = context.SimpleQueue()
            multiprocessing.spawn(read, (world, storage, folder, results), nprocs=world)
            found = sorted(results.get() for _ in range(world))
            read_bytes = ", ".join(f"{count / 1e6:.1f}" for _, count, _, _, _ in found)
            print(
                f"{world} readers: {read_bytes} MB in {max(r for _, _, r, _, _ in found)} requests at most; "
                f"memory +{max(m for *_, m, _ in found) / 1e6:.0f} MB at most; {max(s for *_, s in found):.2f} s"
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
