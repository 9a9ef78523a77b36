"""Tensor names in a checkpoint, and loading only what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from raymat.checkpoint.manifest import (
    STATE,
    STATE_FORMAT,
    CheckpointId,
    newer_format,
    refuse_format,
)
from raymat.errors import CheckpointError, NewerFormatError
from raymat.storage.fields import Count, parse_fields, parse_object

if TYPE_CHECKING:
    from torch import Tensor  # at run time late: a driver lists checkpoints without torch

FORMAT = 1
MODEL, OPTIMIZER, EMA = "model/", "optimizer/", "ema/"


class _Cursor(TypedDict):
    version: int
    next_example: Count


class _Rates(TypedDict, total=False):
    format: int
    cosine_examples: Count | None
    reductions: Count
    reductions_before: Count


class _Scaler(TypedDict):
    scale: float
    good_steps: Count


class _Average(TypedDict):
    updates: Count


class _Measured(TypedDict):
    step: Count
    loss: float | None


class _Validation(_Measured, total=False):
    metrics: dict[str, float | None]


class _Attempts(TypedDict):
    worker_seconds: float
    losses: Count
    noticed: bool
    interval: Count


class _State(TypedDict, total=False):
    """What is read of a training state."""

    format: int
    step: Count
    cursor: _Cursor
    schedule: _Rates
    scaler: _Scaler
    bad_steps: Count
    validations: list[_Validation]
    config: dict[str, Any]
    listing_digest: str
    substitutes: Count
    attempts: _Attempts
    stopped: str | None
    pending_validation: Count | None
    channels_last: bool
    past: dict[str, Any] | None
    ema: _Average | None
    arithmetic: list[dict[str, str]] | None


_NEEDED = ("step", "cursor", "schedule", "scaler", "bad_steps", "config", "listing_digest")


def parse_state(checkpoint: CheckpointId, data: bytes) -> dict[str, Any]:
    """Return what a checkpoint's state file holds; whether training can go on from it says `require_state`.

    Raises:
        NewerFormatError: a newer raymat wrote the file. CheckpointError: it is damaged.
    """
    try:
        content = parse_object(data)
        refuse_format(content, (STATE_FORMAT,), f"{checkpoint} has {STATE}")
        extra = content.get("extra")
        if not isinstance(extra, dict) or content.get("step") != checkpoint.step:
            raise ValueError("it is of another step or form")
    except ValueError as error:
        raise CheckpointError(f"{checkpoint} is damaged: {STATE}: {error}") from error
    return extra


def require_state(extra: Mapping[str, Any], needed: Sequence[str] = _NEEDED) -> None:
    """Raise unless this is a training state that holds what is `needed`: by default all that training goes on from.

    Raises:
        NewerFormatError: a newer raymat wrote it. CheckpointError: its format is unknown, a field is missing or of another type.
    """
    if extra.get("format") != FORMAT:
        newer = newer_format(extra, FORMAT) is not None
        raise (NewerFormatError if newer else CheckpointError)(
            f"expected a training state of format {FORMAT}, got {extra.get('format')!r}: "
            "resume with the raymat that wrote it"
        )
    missing = next((field for field in needed if field not in extra), None)
    if missing is not None:
        raise CheckpointError(f"the training state is damaged: {missing} is missing")
    try:
        parse_fields(_State, extra)
    except ValueError as error:
        raise CheckpointError(f"the training state is damaged: {error}") from error


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def copy_same(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Copy `given` into the tensors `own`, or nothing. Raises as `require_same`."""
    import torch

    require_same(own, given, what)
    with torch.no_grad():
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
    import torch

    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(flat.numel(), flat.element_size())
