"""Batches made ready beside training: copied to the device, augmented and composed while the step before them is computed.

    thread        next batch of the feed -> pinned copy -> side stream: copy, augment, compose -> event
    training      takes the pictures; its stream waits for the event, the host for nothing

What comes out is a function of the batch and its examples' keys, whichever thread and stream makes it, and batches come in
their order: training computes the same as if it made each batch itself. No batch is part of the run's state: one that was
made ready and not trained on is made again by the next attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import torch

from raymat.data.batch import MicroBatch
from raymat.data.composite import Composed

Compose: TypeAlias = Callable[[MicroBatch], Composed]


@dataclass(frozen=True)
class ReadyBatch:
    """A batch, and its pictures on the device by chunk; None: they are to be composed by who trains on them."""

    batch: MicroBatch
    pictures: tuple[Composed, ...] | None = None


class Lane:
    """Where a batch is composed beside training. This one is for the CPU, whose operations are done when they return."""

    def compose(self, compose: Compose, batch: MicroBatch) -> Callable[[], ReadyBatch]:
        """Compose each chunk of `batch`, in the thread; what is returned hands it over, in the training thread."""
        ready = ReadyBatch(batch, tuple(compose(part) for part in batch.by_chunk()))
        return lambda: ready


class CudaLane(Lane):
    """A stream of its own on a GPU. Pinned copies come from torch's cache, which reuses a buffer once its copy is done."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def compose(self, compose: Compose, batch: MicroBatch) -> Callable[[], ReadyBatch]:
        """Queue the work on the stream; handing over makes the training stream wait for it."""
        with torch.cuda.stream(self._stream):
            ready = super().compose(compose, batch)()
            done = self._stream.record_event()

        def hand_over() -> ReadyBatch:
            training = torch.cuda.current_stream(self._stream.device)
            training.wait_event(done)
            for pictures in ready.pictures or ():
                for picture in pictures:
                    # The memory is the side stream's: it must not be used anew before training is done with it.
                    picture.record_stream(training)
            return ready

        return hand_over


def lane_of(device: torch.device) -> Lane | None:
    """Return where batches are made ready beside training; None: nowhere, since on the CPU training itself takes all threads."""
    return CudaLane(device) if device.type == "cuda" else None


def ready_batches(
    batches: Iterator[MicroBatch], compose: Compose, lane: Lane | None
) -> Iterator[ReadyBatch]:
    """Yield the batches with their pictures, the next one made ready by a thread; without a lane as they are.

    An error of the feed or of the thread is raised here, with its own traceback, at its batch's turn. `batches` are taken and
    closed in the thread.
    """
    if lane is None:
        return map(ReadyBatch, batches)
    return _made_beside(batches, compose, lane)


def _made_beside(
    batches: Iterator[MicroBatch], compose: Compose, lane: Lane
) -> Generator[ReadyBatch, None, None]:
    def make() -> Callable[[], ReadyBatch] | None:
        batch = next(batches, None)
        return None if batch is None else lane.compose(compose, batch)

    # One thread takes one batch ahead: the pool carries its errors over, each with its own traceback.
    pool = ThreadPoolExecutor(1, thread_name_prefix="raymat-ready")
    ahead = pool.submit(make)
    try:
        while (hand_over := ahead.result()) is not None:
            ahead = pool.submit(make)
            yield hand_over()
    finally:
        ahead.cancel()
        # In the thread, which may still be waiting for the feed: whoever leaves in the middle does not wait for it.
        pool.submit(_close, batches)
        pool.shutdown(wait=False)


def _close(batches: Iterator[MicroBatch]) -> None:
    if isinstance(batches, Generator):
        batches.close()
