"""Real worker processes joined by gloo, without Ray."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from raymat.distributed.world import World

SECONDS = 120.0
"""A group that takes longer hangs, unless it was given more."""

_PRELOAD = [
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "raymat.train.loop.trainer",
    "raymat.train.observability.tensorboard_log",
    "raymat.data.feed",
]


class WorkerError(Exception):
    """A worker raised something; the text is its traceback."""


def in_workers(
    size: int, function: Callable[..., Any], *args: Any, seconds: float = SECONDS
) -> list[Any]:
    """`function(world, *args)` in `size` fresh processes that form a gloo group; what each returned, by rank.

    A RaymatError that a worker raises comes back as a value; any other exception is raised here as WorkerError.
    """
    # A server that has imported everything once forks each worker: fresh processes without the seconds of imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory(prefix="rm", dir="/tmp") as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            context.Process(
                target=_main,
                args=(World(rank, size), folder, pipes[rank][1], function, args),
                daemon=True,
            )
            for rank in range(size)
        ]
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()
        try:
            return _collect([receiver for receiver, _ in pipes], seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(receivers: list[Connection], seconds: float) -> list[Any]:
    results: dict[int, Any] = {}
    end = time.monotonic() + seconds
    while len(results) < len(receivers):
        missing = [r for i, r in enumerate(receivers) if i not in results]
        ready = wait(missing, timeout=max(0.0, end - time.monotonic()))
        if not ready:
            raise WorkerError(f"after {seconds} s only ranks {sorted(results)} had ended")
        for receiver in ready:
            rank = receivers.index(receiver)  # type: ignore[arg-type]
            try:
                ok, results[rank] = pickle.loads(receiver.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                raise WorkerError(f"rank {rank} died") from None
            if not ok:
                raise WorkerError(f"rank {rank}: {results[rank]}")
    return [results[rank] for rank in range(len(receivers))]


def _main(
    world: World, folder: str, sender: Connection, function: Callable[..., Any], args: Any
) -> None:
    import torch
    import torch.distributed as dist

    from raymat.errors import RaymatError

    torch.set_num_threads(1)
    if world.size > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{Path(folder) / 'meet'}",
            rank=world.rank,
            world_size=world.size,
        )
    try:
        answer = (True, function(world, *args))
    except RaymatError as error:
        answer = (True, error)
    except BaseException:
        answer = (False, traceback.format_exc())
    # Plain pickle: the pipe's own would hand tensors over as shared memory that dies with this process.
    sender.send_bytes(pickle.dumps(answer))
    # Others may still be in a collective with this one.
    time.sleep(0.2)
