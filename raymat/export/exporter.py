"""Exports a checkpoint's network as weights, TorchScript or ONNX, checked as it is made."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from raymat.checkpoint.manifest import CheckpointId
from raymat.config.sections import ModelConfig
from raymat.console import count, size
from raymat.errors import ConfigError, ExportError
from raymat.export import check, formats, sidecar
from raymat.export.check import CheckOutcome
from raymat.export.formats import Format, format_of
from raymat.model.matting import MattingBase, MattingRefine
from raymat.model.pretrained import read_file
from raymat.storage.faults import classify
from raymat.storage.output_files import check_new_files, write_file
from raymat.train.run.weights_reference import Selected, build_network, read_weights

OVERRIDES = ("refine_mode", "backbone_scale", "refine_sample_pixels", "refine_threshold")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    selected: Selected
    path: str
    size: int
    """Bytes of the file."""
    sidecar: dict[str, Any]
    outcomes: tuple[CheckOutcome, ...] = field(default=())

    @property
    def text(self) -> str:
        """For a terminal: where from, where to, and how it was checked."""
        chosen, form = self.selected, self.sidecar["format"]
        lines = [
            chosen.what if chosen.checkpoint is None else f"{chosen.what}: {chosen.checkpoint}"
        ]
        opset = self.sidecar["opset"]
        lines.append(
            f"{self.path}: {size(self.size)}, {form}{f' opset {opset}' if opset else ''}, "
            f"{count(len(chosen.weights), 'tensor')}"
        )
        if self.outcomes:
            lines += [
                check.table(self.outcomes),
                f"largest difference allowed: {self.sidecar['check']['tolerance']:g}",
            ]
        else:
            lines.append("read back: equal to the bit")
        return "\n".join(lines)


def export_network(
    url: str,
    path: str,
    *,
    force: bool = False,
    on_skip: Callable[[CheckpointId, str], None] = lambda checkpoint, reason: None,
    options: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    check_size: tuple[int, int] | None = None,
    tolerance: float | None = None,
) -> Exported:
    """Write the network that `url` selects to the file `path`, and `path`.json; both whole and checked, or neither.

    `force`: replace files. `on_skip`, `options`: as for `read_weights`. `overrides`: options of the
    refiner by their names in `ModelConfig`. `check_size`: height and width of the largest pictures
    to check with. `tolerance`: of the check, instead of the format's own.

    Raises:
        ConfigError: `path` cannot be written to, an override cannot be used, or a package is
        missing. WeightsError: there are no such weights, or not a whole network's. StorageError:
        storage cannot be read or the file not be written. ExportError: it failed its check.
    """
    target, form = _target(path, force), format_of(path)
    if tolerance is not None and form.tolerance is not None:
        form = replace(form, tolerance=tolerance)
    selected = read_weights(url, on_skip=on_skip, options=options)
    model = _options(selected, overrides or {})
    with _drafts(os.path.dirname(target)) as temporary:
        draft = os.path.join(temporary, f"draft{form.ending[0]}")
        if form.tolerance is None:
            content = formats.weights_bytes(selected.weights, form)
            write_file(draft, [content])
            outcomes: tuple[CheckOutcome, ...] = ()
            _same_weights(selected.weights, draft)
        else:
            network = configured(selected, model)
            content = _encode(network, form, selected)
            write_file(draft, [content])
            run = (formats.run_onnx if form.name == "onnx" else formats.run_torchscript)(draft)
            large = check_size or check.largest(network, check.available_memory())
            cases = check.cases(network, large)
            outcomes = check.check(network, run, cases, form.tolerance)
        told = sidecar.describe(os.path.basename(target), content, form, selected, model, outcomes)
        _target(path, force)  # all this took a while
        write_file(target + sidecar.SUFFIX, [sidecar.text(told)])
        _move(draft, target)
    return Exported(selected, path, len(content), told, outcomes)


def configured(selected: Selected, model: ModelConfig) -> MattingBase:
    """The network, in evaluation mode and without gradients, refining as `model` says."""
    network = build_network(selected).requires_grad_(False)
    if isinstance(network, MattingRefine):
        network.backbone_scale = model.backbone_scale
        network.refiner.mode = model.refine_mode
        network.refiner.sample_pixels = model.refine_sample_pixels
        network.refiner.threshold = model.refine_threshold
    return network


def _options(selected: Selected, overrides: Mapping[str, Any]) -> ModelConfig:
    """How the network is to refine; a ConfigError where an override has no meaning or a wrong value."""
    if overrides and selected.stage == "base":
        flags = ", ".join("--" + name.replace("_", "-") for name in overrides)
        raise ConfigError(
            f"{flags}: only a refine network refines, {selected.what} is a base network"
        )
    model = selected.config.model if selected.config else ModelConfig()
    return replace(model, **overrides)


def _encode(network: MattingBase, form: Format, selected: Selected) -> bytes:
    if form.name == "torchscript":
        return formats.torchscript_bytes(network)
    origin = {
        name: str(value) for name, value in sidecar.origin(selected).items() if value is not None
    }
    return formats.onnx_bytes(network, origin)


def _same_weights(weights: Mapping[str, Tensor], path: str) -> None:
    """ExportError unless the file holds these tensors to the bit."""
    found = read_file(path)
    for name, tensor in weights.items():
        other = found.get(name)
        if other is None or other.dtype != tensor.dtype or not torch.equal(*_bits(other, tensor)):
            raise ExportError(f"the file does not hold {name} as it is: it was removed")
    if len(found) != len(weights):
        raise ExportError(
            f"the file holds {len(found)} tensors, not {len(weights)}: it was removed"
        )


def _bits(*tensors: Tensor) -> list[Tensor]:
    """As bytes, so that equal NaNs are equal."""
    return [t.contiguous().reshape(-1).view(torch.uint8) for t in tensors]


@contextmanager
def _drafts(folder: str) -> Iterator[str]:
    """A folder beside the file, for what has not passed its check."""
    try:
        made = tempfile.TemporaryDirectory(prefix=".raymat-", dir=folder)
    except OSError as error:
        raise classify(error, "write").error("write", folder) from error
    with made as temporary:
        yield temporary


def _target(path: str, force: bool) -> str:
    """The absolute path of the file that will be written, links followed; a ConfigError if it cannot be."""
    format_of(path)
    target = os.path.realpath(path)
    check_new_files(path, {target: path, target + sidecar.SUFFIX: path + sidecar.SUFFIX}, force)
    return target


def _move(draft: str, target: str) -> None:
    try:
        os.replace(draft, target)
    except OSError as error:
        raise classify(error, "write").error("write", target) from error
