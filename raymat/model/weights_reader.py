"""Reading weights files with torch's weights-only unpickler, which runs nothing that is in them."""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
from typing import Any

import torch
from torch import Tensor

from raymat.errors import StorageError, WeightsError, one_line
from raymat.storage.faults import backend_errors, classify
from raymat.storage.input_files import read_file as fetch
from raymat.storage.urls import redact

_BROKEN = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    ImportError,
    MemoryError,
)
"""Exceptions of torch.load for bytes that are no weights file, depending on where the fault lies."""

_OTHER_KINDS = (
    (
        b"<",
        "a web page, as servers send in place of a file; fetch it again, with a link to the file itself",
    ),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file itself; fetch that with: git lfs pull",
    ),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"\x89HDF", "an HDF5 file; give PyTorch weights"),
)
"""First bytes of what is often found under the name of weights, and what to do about it."""


def read_file(url: str) -> Any:
    """Read a weights file: tensors (on the CPU), numbers, strings and containers only.

    The content decides whether it is read as safetensors or as torch's format. Raises WeightsError.
    """
    data = _fetch(url)
    if _is_safetensors(data):  # whatever its name says
        return _read_safetensors(data, url)
    # DeepLabV3 checkpoints hold scores of numpy's types beside the weights; they are ignored.
    passed_over: list[Any] = [
        (_Ignored, f"{module}.{name}")
        for module, name in (
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
        )
    ]
    try:
        with torch.serialization.safe_globals(passed_over), warnings.catch_warnings():
            # It warns of odd pickle protocols, which damaged files have.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _BROKEN as error:
        message = f"cannot read weights from {redact(url)}: {_fault_of(data, error)}"
        raise WeightsError(message) from error


def _read_safetensors(data: bytes, url: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found: dict[str, Tensor] = load(data)
        return found
    except (SafetensorError, KeyError, ValueError) as error:
        why = f"the file is damaged ({one_line(error)}); fetch it again"
        raise WeightsError(f"cannot read weights from {redact(url)}: {why}") from error


class _Ignored:
    """Placeholder for an unwanted object: takes any arguments and state, keeps nothing."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _fetch(url: str) -> bytes:
    try:
        return fetch(url)
    except FileNotFoundError as error:
        raise WeightsError(
            f"no such weights file: {redact(url)}; give a .pth file, or a run or checkpoint of raymat"
        ) from error
    except StorageError as error:
        raise WeightsError(f"cannot read weights from {redact(url)}: {error.line}") from error
    except backend_errors() as error:
        why = classify(error).advice
        raise WeightsError(f"cannot read weights from {redact(url)}: {why}") from error


def _is_safetensors(data: bytes) -> bool:
    """Return whether the bytes begin as that format does: a header's length in 8 bytes, then the header, in JSON."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def _fault_of(data: bytes, error: BaseException) -> str:
    text = one_line(error)
    for start, what in _OTHER_KINDS:
        if data.lstrip().startswith(start):
            return f"it is {what}"
    if "TorchScript" in text:
        return "it is a TorchScript archive; give the PyTorch weights (a state dict) instead"
    if not data.startswith((b"PK\x03\x04", b"\x80")):
        return (
            "it is neither a PyTorch nor a safetensors file"
            if data
            else "it is empty; fetch it again"
        )
    if "Unsupported" in text or "Weights only load failed" in text:
        named = re.search(r"GLOBAL ([\w.]+)", text)
        first = f" (the first: {named[1].rstrip('.')})" if named else ""
        return (
            f"it is damaged or holds objects other than weights, which are never run{first}; "
            "save only the state dict: torch.save(model.state_dict(), ...)"
        )
    return f"the file is damaged or incomplete ({type(error).__name__}); fetch it again"
