"""Weights files of averages, with a description: in the header (.safetensors) or in a .json beside the file (.pth)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from raymat.errors import ConfigError
from raymat.export.formats import SAFETENSORS, WEIGHTS, weights_bytes
from raymat.export.sidecar import SUFFIX
from raymat.storage.output_files import check_new_files, write_file

ENDINGS = (".pth", ".safetensors")
METADATA = "raymat"
"""The description's key in a safetensors header."""


def check_path(path: str, force: bool) -> None:
    """Check that a weights file can be written at `path`; `force`: it may replace one.

    Raises:
        ConfigError: it cannot.
    """
    if not path.endswith(ENDINGS):
        raise ConfigError(f"--output must end in {' or '.join(ENDINGS)}, got {path!r}")
    files = [path] if path.endswith(".safetensors") else [path, path + SUFFIX]
    check_new_files(path, {file: file for file in files}, force)


def write_weights(path: str, weights: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """Write weights and their description, whole or not at all; returns the size of the file in bytes.

    Raises:
        StorageError: they cannot be written.
    """
    described = json.dumps(about, indent=2, sort_keys=True, allow_nan=False)
    if path.endswith(".safetensors"):
        content = weights_bytes(weights, SAFETENSORS, {METADATA: described})
        write_file(path, [content])
        return len(content)
    content = weights_bytes(weights, WEIGHTS)
    # The description first: weights that nobody can identify would be worse than the reverse.
    write_file(path + SUFFIX, [f"{described}\n".encode()])
    try:
        write_file(path, [content])
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(os.path.realpath(path + SUFFIX))
        raise
    return len(content)
