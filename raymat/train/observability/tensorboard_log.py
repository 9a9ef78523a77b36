"""TensorBoard curves and images on any storage, one curve however often a run restarts.

TensorBoard's own writer appends to a file, which object stores cannot do. Here each committed span of steps is an event
file of its own, named by its last step, so that TensorBoard reads them in order. A restart first removes the spans that
it will replay. Files are merged beside training (`merging/curves_merge.py`).
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from raymat.storage.store import Store
from raymat.train.observability.logger import Row, Spans, scalars
from raymat.train.observability.merging.curves_merge import (
    clear_replayed,
    event_file_path,
    write_event_file,
)


class TensorBoardLog:
    """A logger that writes `loss`, `epoch`, `lr/PART`, `speed/COLUMN` for what is MEASURED, `goodput`, `valid_loss`,
    `valid_METRIC` and the image grids."""

    def __init__(self, store: Store, attempt: int) -> None:
        self._store = store
        self._attempt = attempt
        self._events: list[Any] = []
        self._spans = Spans()

    def resumed(self, step: int) -> None:
        """Remove what earlier attempts wrote of steps that come again."""
        # From the start the first weights are validated again, too: that is a step 0.
        clear_replayed(self._store, self._attempt, step or -1)

    def row(self, row: Row) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(row).items()]
        self._add(row["step"], row["time"], values)

    def images(self, step: int, grids: Mapping[str, NDArray[np.uint8]]) -> None:
        values = [Summary.Value(tag=name, image=_image(pixels)) for name, pixels in grids.items()]
        self._add(step, time.time(), values)

    def cut(self, step: int) -> None:
        if self._events:
            self._spans.add(step, event_file_path(step, self._attempt), self._events)
            self._events = []

    def flush(self, step: int) -> None:
        self._spans.flush(step, self._write)

    def _write(self, name: str, events: list[Any]) -> None:
        write_event_file(self._store, name, events, events[0].wall_time)

    def _add(self, step: int, when: float, values: list[Any]) -> None:
        if values:
            self._events.append(Event(wall_time=when, step=step, summary=Summary(value=values)))


def _image(pixels: NDArray[np.uint8]) -> Any:
    """Encode an image, (H, W, 3) RGB or (H, W) grey, 0 to 255, in TensorBoard's form."""
    buffer = io.BytesIO()
    # JPEG, not PNG: small, since TensorBoard computes the checksum of a record in Python.
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return Summary.Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        colorspace=1 if pixels.ndim == 2 else 3,
        encoded_image_string=buffer.getvalue(),
    )
