"""Loading pretrained weights: published files, DeepLabV3 checkpoints, tensors that the caller has read.

Mismatches are found before the network is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raymat.errors import WeightsError
from raymat.model.matting import MattingBase
from raymat.model.weights_content import abbreviate, nonfinite, tensors_in
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
                parts.append(f"{len(names)} {label} ({abbreviate(names)})")
        return "; ".join(parts)


def load_init(model: MattingBase, url: str) -> InitReport:
    """Load a weights file into `model`, in place.

    `url`: any URL that fsspec reads, of a published state dict (.pth, .safetensors) or of a
    DeepLabV3 checkpoint, plain or wrapped as `tensors_in` says. Raises WeightsError, and leaves the
    network as it was, for a file that is missing, is no weights file, is of another backbone, holds
    nothing that fits, or NaN or infinity in what fits.
    """
    source = redact(url)
    return load_matching(model, tensors_in(read_file(url), source), source)


def load_matching(
    model: MattingBase,
    tensors: Mapping[str, Tensor],
    source: str = "the given tensors",
) -> InitReport:
    """Copy into `model` the tensors whose names and shapes fit; dtypes and devices stay its own.

    A base network's tensors in a refine network, or the reverse, is the normal case. Raises
    WeightsError, before anything is copied, as `match`.
    """
    own = model.state_dict()
    report = match(own, tensors, source)
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(tensors[name])
    return report


def match(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> InitReport:
    """Compare tensors with a network's state dict `own`, whose data is not read.

    Raises:
        WeightsError: nothing fits; the tensors hold another backbone (names or shapes below `backbone.` that differ, but
        for a first convolution that sees one picture); or one that fits holds NaN or infinity.
    """
    report = _compare(own, tensors, source)
    if not report.matched:
        raise WeightsError(
            f"nothing in {source} fits this network: {_foreign(tensors)}; "
            "give a published .pth, a DeepLabV3 checkpoint, or a run or checkpoint of raymat"
        )
    _check_backbone(own, tensors, report)
    fault = nonfinite({name: tensors[name] for name in report.matched})
    if fault is not None:
        raise WeightsError(f"{source}: {fault}; give weights whose training stayed finite")
    return report


def backbone_of(names: Mapping[str, object]) -> str | None:
    """Return the backbone that a state dict's names are of; None if unknown."""
    for backbone, signature in _SIGNATURES.items():
        if all(name in names for name in signature):
            return backbone
    return None


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
    own: Mapping[str, Tensor], other: Mapping[str, Tensor], report: InitReport
) -> None:
    allowed = [n for n in FIRST_CONVOLUTIONS if n in other and other[n].shape[1:2] == (3,)]
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
            f"{len(different)} tensors are missing, of another shape or unknown ({abbreviate(different)})"
        )
    raise WeightsError(message)


def _foreign(tensors: Mapping[str, Tensor]) -> str:
    if not tensors:
        return "it holds no tensors"
    return f"its {len(tensors)} tensors are named {abbreviate(tuple(tensors))}"
