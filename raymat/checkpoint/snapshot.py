"""Snapshots: copies of the training state that later steps do not change."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from raymat.checkpoint.manifest import MAX_STATE_BYTES
from raymat.checkpoint.safetensors_io import check_storable
from raymat.errors import CheckpointError

_STATE_FRAME = 4096
"""Room for what stands around the state in its file."""
_ALIGN = 64
"""Bytes: each tensor begins on a cache line, aligned for every dtype."""


@dataclass(frozen=True)
class Snapshot:
    """Snapshot of the state after `step` completed steps: CPU tensors, and all else as JSON-able `extra`."""

    step: int
    tensors: dict[str, Tensor]
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def take(
        cls,
        step: int,
        tensors: Mapping[str, Tensor],
        extra: Mapping[str, Any],
        buffer: SnapshotBuffer | None = None,
    ) -> Snapshot:
        """Copy the state; afterwards training may change all of it.

        `tensors` may lie on any device, in any memory format. `extra` is copied as it will be read
        back: tuples become lists. With `buffer` the snapshot lives in it, and ends when the buffer
        is used again. Raises TypeError for what cannot be stored.
        """
        buffer = buffer or SnapshotBuffer()
        return cls(step, buffer.copy(tensors), freeze_extra(extra))


class SnapshotBuffer:
    """Buffer for one snapshot, kept between saves: page-locked if the state lies on a GPU.

    One flat allocation: the first copy pays for its pages, later ones run at the speed of memory.
    """

    def __init__(self) -> None:
        self._layout: tuple[Any, ...] = ()
        self._views: dict[str, Tensor] = {}
        self._copied: list[torch.cuda.Event] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._beside: Future[list[torch.cuda.Event]] | None = None

    def copy(
        self, tensors: Mapping[str, Tensor], *, wait: bool = True, lasting: Container[str] = ()
    ) -> dict[str, Tensor]:
        """Copy `tensors` into the buffer; return contiguous CPU copies.

        Without `wait`, copies may still be under way: call `wait` before they are read. The tensors
        named in `lasting` are then copied beside the caller, by a thread or on a stream of their
        own: the caller must not change them before it has called `wait_for_copy`. All others may be
        changed at once, by work on the current stream.
        """
        self.wait()
        self.reserve(tensors)
        late = {} if wait else {name: t for name, t in tensors.items() if name in lasting}
        self._copied = self._copy({name: t for name, t in tensors.items() if name not in late})
        self._copy_beside(late)
        if wait:
            self.wait()
        return dict(self._views)

    def wait_for_copy(self) -> None:
        """Let the caller, and what it puts on the current stream from here on, change all tensors."""
        if self._beside is not None:
            self._beside.result()
        for event in self._copied:
            torch.cuda.current_stream(event.device).wait_event(event)

    def wait(self) -> None:
        """Return when the last copies are complete; other threads run meanwhile."""
        if self._beside is not None:
            self._beside.result()
        for event in self._copied:
            event.synchronize()

    def _copy(self, tensors: Mapping[str, Tensor]) -> list[torch.cuda.Event]:
        """Copy on the current streams; return events to wait for if a tensor lies on a GPU."""
        if tensors:
            sources = [tensor.detach() for tensor in tensors.values()]
            # One call for all: the copying thread takes the GIL once, not a thousand times between the step's launches.
            torch._foreach_copy_([self._views[name] for name in tensors], sources, True)
        devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        return [torch.cuda.current_stream(device).record_event() for device in devices]

    def _copy_beside(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy while the caller goes on: a GPU's engines on a stream of their own, memory by a thread."""
        for device in {t.device for t in tensors.values() if t.is_cuda}:
            stream = self._streams.setdefault(device, torch.cuda.Stream(device))
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                self._copied += self._copy({n: t for n, t in tensors.items() if t.device == device})
        on_cpu = {name: tensor for name, tensor in tensors.items() if not tensor.is_cuda}
        self._beside = None
        if on_cpu:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="snapshot")
            self._beside = self._pool.submit(self._copy, on_cpu)

    def reserve(self, tensors: Mapping[str, Tensor]) -> None:
        """Make room for tensors of these names, shapes and dtypes, unless it is there already."""
        layout = tuple((name, t.shape, t.dtype) for name, t in tensors.items())
        pinned = any(t.is_cuda for t in tensors.values())
        if (pinned, layout) == self._layout:
            return
        for name, tensor in tensors.items():
            check_storable(name, tensor)
        # Free the old memory before allocating the new: together they would be two states.
        self._layout, self._views = (), {}
        sizes = [_padded(t.numel() * t.element_size()) for t in tensors.values()]
        flat = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=pinned)
        start = 0
        for (name, tensor), size in zip(tensors.items(), sizes, strict=True):
            piece = flat[start : start + tensor.numel() * tensor.element_size()]
            self._views[name] = piece.view(tensor.dtype).view(tensor.shape)
            start += size
        self._layout = (pinned, layout)


def freeze_extra(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Copy `extra` as it will be read back. Raises TypeError for what cannot be stored."""
    frozen: dict[str, Any] = json.loads(dump_extra(extra))
    return frozen


def encode_extra(extra: Mapping[str, Any]) -> str:
    """Encode `extra` as `dump_extra`.

    Raises:
        CheckpointError: no reader would take so much; names what there is most of. TypeError: as `dump_extra`.
    """
    text = dump_extra(extra)
    limit = MAX_STATE_BYTES - _STATE_FRAME
    if len(text) > limit:
        sizes = {name: len(dump_extra({name: value})) for name, value in extra.items()}
        most = max(sizes, key=lambda name: sizes[name])
        raise CheckpointError(
            f"the state beside the tensors has grown to {len(text)} bytes, {sizes[most]} of them {most!r}, more than "
            f"the {limit} that can be read back: it is not saved"
        )
    return text


def dump_extra(extra: Mapping[str, Any]) -> str:
    """Encode `extra` as JSON in which every float comes back to the bit.

    NaN and infinities are written as NaN, Infinity and -Infinity, which Python reads: a run whose loss once
    overflowed must still be saved. Raises
    TypeError for anything that JSON would change (keys that are no strings) or cannot hold.
    """
    _check_keys(extra, "extra")
    return json.dumps(extra, sort_keys=True, separators=(",", ":"), allow_nan=True)


def _check_keys(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: only strings can be keys")
            _check_keys(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if not isinstance(item, int | float | str):
                _check_keys(item, f"{where}[{index}]")
    elif not (value is None or isinstance(value, int | float | str)):
        raise TypeError(f"{where} is a {type(value).__name__}: only JSON's types can be stored")


def _padded(size: int) -> int:
    return math.ceil(size / _ALIGN) * _ALIGN
