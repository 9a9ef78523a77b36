"""Loading pretrained weights: published files, DeepLabV3 checkpoints, tensors that the caller has read.

Mismatches are found before the network is changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raymat.errors import WeightsError
from raymat.model.matting import MattingBase
from raymat.model.weights_reader import read_file
from raymat.storage.urls import redact

FIRST_CONVOLUTIONS = ("backbone.conv1.weight", "backbone.features.0.0.weight")
"""First convolutions: they see one picture (3 channels) in DeepLabV3's networks, two (6 channels) in these."""

_SIGNATURES: dict[str, tuple[str, ...]] = {
    "mobilenetv2": ("backbone.features.17.conv.0.0.weight",),
    "resnet101": ("backbone.layer4.2.conv1.weight", "backbone.layer3.22.conv1.weight"),
    "resnet50": ("backbone.layer4.2.conv1.weight",),
}
"""Tensor names that identify a backbone; the first that fits is taken."""


@dataclass(frozen=True)
class InitReport:
    """Report of what was loaded into a network; names of tensors, sorted as in their owner."""

    source: str
    """Where the tensors came from, for the summary."""
    matched: tuple[str, ...]
    """Loaded."""
    missing: tuple[str, ...]
    """In the network only: they keep their initial values."""
    unexpected: tuple[str, ...]
    """In the source only: ignored."""
    mismatched: tuple[str, ...]
    """In both with different shapes: they keep their initial values."""

    @property
    def summary(self) -> str:
        """One line that says how much was loaded, and what was not."""
        total = len(self.matched) + len(self.missing) + len(self.mismatched)
        parts = [f"loaded {len(self.matched)} of the network's {total} tensors from {self.source}"]
        for label, names in (
            ("not in it", self.missing),
            ("of another shape", self.mismatched),
            ("not of this network", self.unexpected),
        ):
            if names:
                parts.append(f"{len(names)} {label} ({_abbreviate(names)})")
        return "; ".join(parts)


def load_init(model: MattingBase, url: str) -> InitReport:
    """Load a weights file into `model`, in place.

    `url`: any URL that fsspec reads, of a published state dict (.pth, .safetensors) or of a
    DeepLabV3 checkpoint (a dictionary with `model_state`). Raises WeightsError, and leaves the
    network as it was, for a file that is missing, is no weights file, is of another backbone, or
    holds nothing that fits.
    """
    return load_published(model, read_file(url), redact(url))


def load_published(model: MattingBase, content: Any, source: str) -> InitReport:
    """Load a weights file's content into `model`, as `load_init`: a state dict, or a dictionary with `model_state`."""
    tensors = tensors_in(content, source)
    return load_matching(model, tensors, source, first_may_differ=_is_deeplab(content))


def tensors_in(content: Any, source: str) -> dict[str, Tensor]:
    """Return the tensors of a file's content under this project's names, ignoring everything else.

    Raises WeightsError if it is no dictionary.
    """
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{source} holds a {type(content).__name__}, expected a state dict: "
            "give a published .pth or a DeepLabV3 checkpoint"
        )
    if _is_deeplab(content):
        return rename_deeplab(_tensors(content["model_state"]))
    return _tensors(content)


def load_matching(
    model: MattingBase,
    tensors: Mapping[str, Tensor],
    source: str = "the given tensors",
    *,
    first_may_differ: bool = False,
) -> InitReport:
    """Copy into `model` the tensors whose names and shapes fit; dtypes and devices stay its own.

    A base network's tensors in a refine network, or the reverse, is the normal case. Raises
    WeightsError, before anything is copied, when nothing fits, or when the tensors hold another
    backbone: names or shapes below `backbone.` that differ. `first_may_differ`: the first
    convolution may have another shape.
    """
    own = model.state_dict()
    report = _compare(own, tensors, source)
    if not report.matched:
        raise WeightsError(
            f"nothing in {source} fits this network: {_foreign(tensors)}; "
            "give a published .pth, a DeepLabV3 checkpoint, or a run or checkpoint of raymat"
        )
    _check_backbone(own, tensors, report, first_may_differ)
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(tensors[name])
    return report


def _is_deeplab(content: Mapping[Any, Any]) -> bool:
    return isinstance(content.get("model_state"), Mapping)


def rename_deeplab(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a DeepLabV3 state dict (github.com/VainF/DeepLabV3Plus-Pytorch) to this project's names.

    `classifier.classifier.0` becomes `aspp`. A MobileNetV2's `backbone.low_level_features.i`
    becomes `backbone.features.i`; its `high_level_features.j` begin at features[4], numbered from 0
    or, where a slice of the original kept its numbers, from 4.
    """
    pattern = re.compile(r"backbone\.high_level_features\.(\d+)\.")
    numbers = [int(found[1]) for name in state if (found := pattern.match(name))]
    shift = 4 - min(numbers, default=4)
    return {
        pattern.sub(lambda found: f"backbone.features.{int(found[1]) + shift}.", name)
        .replace("backbone.low_level_features.", "backbone.features.")
        .replace("classifier.classifier.0.", "aspp."): tensor
        for name, tensor in state.items()
    }


def backbone_of(names: Mapping[str, object]) -> str | None:
    """Return the backbone that a state dict's names are of; None if unknown."""
    for backbone, signature in _SIGNATURES.items():
        if all(name in names for name in signature):
            return backbone
    return None


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the plain tensors among a dictionary's values, ignoring everything else."""
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and _plain(value)
    }


def _plain(tensor: Tensor) -> bool:
    """Return whether it can be copied into a parameter: dense, real, not quantized, with its data."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_complex()
        and not tensor.is_quantized
    )


def _compare(own: Mapping[str, Tensor], other: Mapping[str, Tensor], source: str) -> InitReport:
    both = [name for name in own if name in other]
    same = {name for name in both if own[name].shape == other[name].shape}
    return InitReport(
        source=source,
        matched=tuple(name for name in both if name in same),
        missing=tuple(name for name in own if name not in other),
        unexpected=tuple(name for name in other if name not in own),
        mismatched=tuple(name for name in both if name not in same),
    )


def _check_backbone(
    own: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    report: InitReport,
    first_may_differ: bool,
) -> None:
    allowed = FIRST_CONVOLUTIONS if first_may_differ else ()
    different = [
        name
        for name in (*report.missing, *report.unexpected, *report.mismatched)
        # Counters only; files older than PyTorch 0.4.1 lack them.
        if name.startswith("backbone.")
        and not name.endswith("num_batches_tracked")
        and name not in allowed
    ]
    if not different:
        return
    ours, theirs = backbone_of(own), backbone_of(other)
    if theirs is not None and ours != theirs:
        message = (
            f"{report.source} has the backbone {theirs}, this network {ours}: "
            f"use --backbone {theirs} or other weights"
        )
    else:
        message = (
            f"the backbone in {report.source} is not this network's {ours}: "
            f"{len(different)} tensors differ ({_abbreviate(different)})"
        )
    raise WeightsError(message)


def _foreign(tensors: Mapping[str, Tensor]) -> str:
    if not tensors:
        return "it holds no tensors"
    return f"its {len(tensors)} tensors are named {_abbreviate(tuple(tensors))}"


def _abbreviate(names: tuple[str, ...] | list[str]) -> str:
    """Return the first names, and "..." if there are more."""
    shown = ", ".join(names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown
