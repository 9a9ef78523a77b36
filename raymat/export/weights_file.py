"""A weights file of this machine and what is told of it: in its header (.safetensors), or in a .json beside it (.pth)."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raymat.errors import ConfigError
from raymat.export.sidecar import SUFFIX
from raymat.storage.output_files import check_new_files, write_file

ENDINGS = (".pth", ".safetensors")
METADATA = "raymat"
"""The key in a safetensors header."""


def check_path(path: str, force: bool) -> None:
    """Say before hours of work what would be said after them; `force`: a file may be there.

    Raises:
        ConfigError: no weights file can be written there.
    """
    if not path.endswith(ENDINGS):
        raise ConfigError(f"--output must end in {' or '.join(ENDINGS)}, got {path!r}")
    check_new_files(path, {file: file for file in _files(path)}, force)


def write_weights(path: str, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """Write the file, and what is to be told about it, whole or not at all; returns the file's bytes.

    Raises:
        StorageError: it cannot be written.
    """
    told = json.dumps(about, indent=2, sort_keys=True, allow_nan=False)
    if path.endswith(".safetensors"):
        from safetensors.torch import save

        content = save({n: t.contiguous() for n, t in weights.items()}, {METADATA: told})
        write_file(path, [content])
        return len(content)
    buffer = io.BytesIO()
    torch.save(dict(weights), buffer)
    # The sidecar first: weights of which nobody knows what they are would be worse than the reverse.
    write_file(sidecar(path), [f"{told}\n".encode()])
    try:
        write_file(path, [buffer.getbuffer()])
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(os.path.realpath(sidecar(path)))
        raise
    return buffer.getbuffer().nbytes


def sidecar(path: str) -> str:
    """The file beside a .pth that tells what it is."""
    return path + SUFFIX


def _files(path: str) -> list[str]:
    return [path] if path.endswith(".safetensors") else [path, sidecar(path)]
