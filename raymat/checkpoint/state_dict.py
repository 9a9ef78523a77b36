"""Tensor names in a checkpoint, and loading only what fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raymat.checkpoint.manifest import newer_format
from raymat.errors import CheckpointError, NewerFormatError

FORMAT = 1
MODEL, OPTIMIZER, EMA = "model/", "optimizer/", "ema/"


def require_format(extra: Mapping[str, Any]) -> None:
    """Raise CheckpointError for the state of a format that this raymat does not know, NewerFormatError for a newer one."""
    if extra.get("format") != FORMAT:
        newer = newer_format(extra, FORMAT) is not None
        raise (NewerFormatError if newer else CheckpointError)(
            f"expected a training state of format {FORMAT}, got {extra.get('format')!r}: "
            "resume with the raymat that wrote it"
        )


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@torch.no_grad()
def copy_same(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Copy `given` into the tensors `own`, or nothing. Raises as `require_same`."""
    require_same(own, given, what)
    for name, tensor in own.items():
        tensor.copy_(given[name])


def require_same(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError unless both have the same names, shapes and dtypes."""
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    other = [
        name
        for name in sorted(own.keys() & given.keys())
        if own[name].shape != given[name].shape or own[name].dtype != given[name].dtype
    ]
    for told, names in (("lacks", missing), ("has an unknown", extra), ("has another", other)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"the checkpoint's {what} {told} {names[0]}{more}")


def bits_of(tensor: Tensor) -> Tensor:
    """View a tensor as uint8 (elements, bytes per element), in which equal NaNs are equal and 0.0 is not -0.0."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(flat.numel(), flat.element_size())
