"""Describes an exported network in FILE.json, so that it can be run without knowing raymat."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from raymat.config.sections import ModelConfig
from raymat.export.check import CheckOutcome
from raymat.export.formats import BASE_OUTPUTS, ONNX, OPSET, REFINE_OUTPUTS, Format
from raymat.model.pretrained import backbone_of
from raymat.storage.digest import digest
from raymat.storage.urls import redact
from raymat.train.run.selected_weights import Selected
from raymat.version import __version__

SUFFIX = ".json"

INPUTS: dict[str, tuple[str, str]] = {
    "src": ("R, G, B", "the picture with the subject"),
    "bgr": ("R, G, B", "the same without the subject, from the same camera"),
}
"""Channels and meaning; all have shape (batch, 3, height, width), in 0..1."""

_FULL, _COARSE, _PATCHES = (
    ("height", "width"),
    (
        "floor(height * backbone_scale)",
        "floor(width * backbone_scale)",
    ),
    ("height / 4", "width / 4"),
)
_OUTPUTS: dict[str, tuple[int, str, str]] = {
    "pha": (1, "alpha", "how much of the pixel is the subject"),
    "fgr": (
        3,
        "R, G, B",
        "the subject's colour; composite: fgr * pha + new background * (1 - pha)",
    ),
    "err": (1, "error", "predicted error of pha"),
    "hid": (32, "hidden", "features, at least 0 and unbounded"),
    "ref": (1, "refined", "1 where a patch of 4 x 4 pixels was refined, else 0"),
}
"""Number of channels, their names and meaning; outputs with _sm are the same, coarse."""


def origin(selected: Selected) -> dict[str, Any]:
    """Say where the weights come from; None where a file does not tell."""
    return {
        "source": selected.what,
        "run": None if selected.run_url is None else redact(selected.run_url),
        "checkpoint": None if selected.checkpoint is None else str(selected.checkpoint),
        "step": selected.step,
        "ema": selected.ema,
    }


def describe(
    name: str,
    content: bytes,
    form: Format,
    selected: Selected,
    model: ModelConfig,
    outcomes: Sequence[CheckOutcome],
) -> dict[str, Any]:
    """Describe the file `name`, JSON-able. `model`: the options that it was exported with."""
    refine = selected.stage == "refine"
    names = REFINE_OUTPUTS if refine else BASE_OUTPUTS
    smallest = 4 * max(1, math.ceil(1 / model.backbone_scale / 4)) if refine else 4
    return {
        "file": name,
        "format": form.name,
        "opset": OPSET if form.name == ONNX.name else None,
        "bytes": len(content),
        "digest": digest([content]),
        "raymat": __version__,
        "torch": torch.__version__,
        **origin(selected),
        "stage": selected.stage,
        "backbone": backbone_of(selected.weights),
        "refiner": _refiner(selected, model) if refine else None,
        "dtype": _dtype(selected) if form.tolerance is None else "float32",
        "sizes": {"batch": "1 or more", "multiple_of": 4, "smallest": smallest},
        "inputs": [_input(name) for name in INPUTS],
        "outputs": [_output(name, refine) for name in names],
        "check": None if form.tolerance is None else _check(form.tolerance, outcomes),
    }


def text(sidecar: dict[str, Any]) -> bytes:
    """Encode the sidecar as it is written."""
    return (json.dumps(sidecar, indent=2, allow_nan=False) + "\n").encode()


def _dtype(selected: Selected) -> str:
    """Name the dtypes of the weights; float64 for a run in fp64."""
    kinds = {str(t.dtype) for t in selected.weights.values() if t.is_floating_point()}
    return ", ".join(sorted(kind.removeprefix("torch.") for kind in kinds))


def _refiner(selected: Selected, model: ModelConfig) -> dict[str, Any]:
    kernel = selected.weights.get("refiner.conv1.weight")
    return {
        "backbone_scale": model.backbone_scale,
        "mode": model.refine_mode,
        "sample_pixels": model.refine_sample_pixels if model.refine_mode == "sampling" else None,
        "threshold": model.refine_threshold if model.refine_mode == "thresholding" else None,
        "kernel_size": model.refine_kernel_size if kernel is None else int(kernel.shape[-1]),
    }


def _input(name: str) -> dict[str, Any]:
    channels, meaning = INPUTS[name]
    return {
        "name": name,
        "shape": ["batch", 3, *_FULL],
        "channels": channels,
        "range": [0, 1],
        "meaning": meaning,
    }


def _output(name: str, refine: bool) -> dict[str, Any]:
    kind, coarse, _ = name.partition("_")
    number, channels, meaning = _OUTPUTS[kind]
    size = _PATCHES if kind == "ref" else _COARSE if coarse and refine else _FULL
    return {
        "name": name,
        "shape": ["batch", number, *size],
        "channels": channels,
        "range": [0, None] if kind == "hid" else [0, 1],
        "meaning": ("coarse: " if coarse and kind != "ref" else "") + meaning,
    }


def _check(tolerance: float, outcomes: Sequence[CheckOutcome]) -> dict[str, Any]:
    worst = {
        name: max(one.differences[name] for one in outcomes) for name in outcomes[0].differences
    }
    return {
        "against": "the network in torch, float32 on the CPU",
        "tolerance": tolerance,
        "largest_difference": worst,
        "cases": [asdict(one) for one in outcomes],
    }
