"""Safetensors files: tensors written straight from their memory, read as views of one buffer.

The format is that of https://github.com/huggingface/safetensors: 8 bytes of header length
(little-endian), a JSON header {name: {dtype, shape, data_offsets}}, the data. It is written and
read here rather than by the library because the library copies everything in both directions while
it holds the GIL (0.3 s for 483 MB, during which no step can be launched), and because an untrusted file must be
checked in full before any of it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raymat.errors import CheckpointError
from raymat.storage.digest import Buffer

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 64 * 2**20
_METADATA = "__metadata__"


def check_storable(name: str, tensor: Tensor) -> None:
    """Raise a TypeError if `tensor` cannot be written: sparse, complex, without data..."""
    if name == _METADATA:
        raise TypeError(f"a tensor cannot be called {name!r}")
    if tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError(
            f"tensor {name!r} ({tensor.dtype}, {tensor.layout}, {tensor.device}) cannot be stored"
        )


def encode(tensors: Mapping[str, Tensor]) -> list[Buffer]:
    """Encode tensors as the file's consecutive pieces; those of tensors are views of their memory.

    Larger items first, so that every tensor lies aligned in the file. Tensors that are not
    contiguous are copied.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    pieces: list[Buffer] = []
    end = 0
    for name in names:
        check_storable(name, tensors[name])
        piece = memory_of(tensors[name])
        header[name] = {
            "dtype": _NAMES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [end, end + len(piece)],
        }
        end += len(piece)
        pieces.append(piece)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *pieces]


def memory_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor, row-major; a view if it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def decode(data: Tensor) -> dict[str, Tensor]:
    """Decode a file given as uint8 (n,): return every tensor, as a view of it, by name.

    Raises CheckpointError unless the header is exactly a description of all the bytes: each in one
    tensor, no gap.
    """
    header, start = _header(data)
    entries = sorted(
        (_Entry(name, item) for name, item in header.items()), key=lambda e: (e.begin, e.end)
    )
    position = 0
    for entry in entries:
        if entry.begin != position:
            raise CheckpointError(f"header lies: tensor {entry.shown} leaves a gap or overlaps")
        position = entry.end
    if position != len(data) - start:
        raise CheckpointError(
            f"header lies: it describes {position} bytes, the file holds {len(data) - start}"
        )
    return {
        e.name: _view(data[start + e.begin : start + e.end], e)
        for e in sorted(entries, key=lambda e: e.name)
    }


class _Entry:
    """Header entry of one tensor, checked by itself."""

    def __init__(self, name: str, item: Any) -> None:
        self.name = name
        self.shown = ascii(name[:80])
        if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
            raise self._lie("is described wrongly")
        offsets, shape = item["data_offsets"], item["shape"]
        if not _counts(offsets) or len(offsets) != 2 or not _counts(shape) or len(shape) > 64:
            raise self._lie("has a wrong shape or place")
        if not isinstance(item["dtype"], str) or item["dtype"] not in DTYPES:
            raise self._lie("has an unknown dtype")
        self.dtype = DTYPES[item["dtype"]]
        self.shape: list[int] = shape
        self.begin, self.end = offsets
        if self.end - self.begin != math.prod(shape) * self.dtype.itemsize:
            raise self._lie("has a size that is not its shape's")
        # A dimension may be huge where another is 0: torch counts in 63 bits.
        if any(extent >= 2**40 for extent in shape):
            raise self._lie("has a dimension beyond reason")

    def _lie(self, what: str) -> CheckpointError:
        return CheckpointError(f"header lies: tensor {self.shown} {what}")


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _header(data: Tensor) -> tuple[dict[str, Any], int]:
    """Return the header without its metadata, and the offset of the data."""
    memory = memory_of(data)
    length = int.from_bytes(memory[:8], "little")
    if len(memory) < 8 or length > min(len(memory) - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"header lies: {length} bytes long in a file of {len(memory)}")
    try:
        header = json.loads(bytes(memory[8 : 8 + length]), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError("header is not JSON, or names a tensor twice") from error
    if not isinstance(header, dict):
        raise CheckpointError("header is not a JSON object")
    header.pop(_METADATA, None)
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _view(data: Tensor, entry: _Entry) -> Tensor:
    """Return the bytes as the entry's tensor: a view, or a copy if they are unaligned."""
    size = entry.dtype.itemsize
    if data.numel() and (data.data_ptr() % size or data.storage_offset() % size):
        data = data.clone()
    if entry.dtype == torch.bool and bool((data > 1).any()):
        raise CheckpointError(f"tensor {entry.shown} holds booleans that are neither 0 nor 1")
    if not data.numel():
        return torch.empty(entry.shape, dtype=entry.dtype)
    return data.view(entry.dtype).reshape(entry.shape)
