"""What the promise hangs on: options that a run keeps for life, and those that it may be given anew."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any

from raymat.config.run import LengthConfig, RunConfig, to_dict
from raymat.errors import ConfigError

PROMISED = (
    "stage", "dataset", "backgrounds", "synthetic", "resolution", "crop", "batch_size", "seed",
    "scaled_decode", "backbone", "init", "backbone_scale", "refine_mode", "refine_sample_pixels",
    "refine_threshold", "refine_kernel_size", "lr_backbone", "lr_aspp", "lr_decoder", "lr_refiner",
    "precision", "threads", "ema_decay", "clip_norm", "weight_decay", "freeze", "accumulate",
    "schedule", "schedule_backbone",
    "schedule_aspp", "schedule_decoder", "schedule_refiner", "warmup_examples", "schedule_examples",
    "schedule_floor", "step_examples", "step_factor", "plateau_metric", "plateau_mode",
    "plateau_patience", "plateau_min_delta", "plateau_factor",
)  # fmt: skip
"""Options that a resumed run may not change: with another value its weights would not be an
undisturbed run's."""
PROMISED_BY_PLATEAU = ("valid_interval", "valid_examples", "validation")
"""Promised too where validations have a say in the learning rates; of the last only whether results count at once."""
ADDABLE = frozenset({"ema_decay"})
"""Promised options that a run may be given later, but not change or lose: what they add begins
there."""

DATASET = ("dataset", "backgrounds", "synthetic")
"""Promised options that may change where the run's dataset has grown."""

LENGTH = tuple(f.name for f in fields(LengthConfig))
"""Options that a run may be continued with other values of."""


def refuse_changes(
    stored: RunConfig, asked: RunConfig, what: str, but: Collection[str] = ()
) -> None:
    """Raise where `asked` would break the promise of what was begun with `stored`, the options in `but` aside.

    Raises:
        ConfigError: naming `what` was begun, each changed option with both values, and the fix.
    """
    changes = promise_changes(stored, asked)
    changes = {name: values for name, values in changes.items() if name not in but}
    if changes:
        told = ", ".join(
            f"--{name.replace('_', '-')} was {old}, is {new}"
            for name, (old, new) in changes.items()
        )
        grown = changes.keys() <= set(DATASET)
        raise ConfigError(
            f"{what} was begun with another configuration: {told}; "
            f"use the old one, or another --name{', or --grow-dataset for more data' if grown else ''}"
        )


def promise_changes(stored: RunConfig, asked: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Promised options whose value differs, as {name: (stored, asked)}."""
    old, new = to_dict(stored), to_dict(asked)
    plateau = "plateau" in stored.schedules.values()
    promised = (*PROMISED, *(PROMISED_BY_PLATEAU if plateau else ()))
    if (old["validation"] == "loop") == (new["validation"] == "loop"):
        promised = tuple(name for name in promised if name != "validation")
    return {
        name: (old[name], new[name])
        for name in promised
        if old[name] != new[name] and not (name in ADDABLE and old[name] is None)
    }
