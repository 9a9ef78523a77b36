"""Exports a network as weights, TorchScript or ONNX, and checks the file before it appears."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from raymat.checkpoint.state_dict import bits_of
from raymat.errors import ExportError
from raymat.export import check, check_memory, formats, sidecar
from raymat.export.check import CheckOutcome
from raymat.export.formats import Format, format_of
from raymat.model.matting import MattingBase
from raymat.model.weights_reader import read_file
from raymat.storage.faults import classify
from raymat.storage.output_files import check_new_files, write_file
from raymat.train.run.checkpoint_choice import OnSkip
from raymat.train.run.refine_options import configured, refining_as
from raymat.train.run.selected_weights import Selected, read_weights, whole_network


@dataclass(frozen=True)
class Exported:
    """An exported network."""

    selected: Selected
    path: str
    size: int
    """Of the file, in bytes."""
    sidecar: dict[str, Any]
    outcomes: tuple[CheckOutcome, ...] = ()
    """Of the comparison with the network; none for weights, which are compared to the bit."""


def export_network(
    url: str,
    path: str,
    *,
    force: bool = False,
    on_skip: OnSkip = lambda checkpoint, reason: None,
    overrides: Mapping[str, Any] | None = None,
    check_size: tuple[int, int] | None = None,
    tolerance: float | None = None,
) -> Exported:
    """Write the network that `url` refers to and its description, `path`.json; both whole and checked, or neither.

    `force`: replace files. `on_skip`: as for `read_weights`. `overrides`: options of the refiner by their names in
    `ModelConfig`. `check_size`: height and width of the largest pictures to check with, multiples of 4; default: what
    half of the free memory takes. `tolerance`: of the check; default: the format's, or more where the network itself
    rounds so in float32.

    Raises:
        ConfigError: `path` cannot be written to, an override cannot be used, or a package is missing. WeightsError:
        there are no such weights, or not a whole network's. StorageError: storage cannot be read or the file not be
        written. ExportError: it failed its check.
    """
    target, form = _target(path, force), format_of(path)
    own_rounding = tolerance is None
    if tolerance is not None and form.tolerance is not None:
        form = replace(form, tolerance=tolerance)
    selected = read_weights(url, on_skip=on_skip)
    if selected.config is not None or selected.checkpoint is None:
        selected = whole_network(selected)
    model = refining_as(selected, overrides or {})
    outcomes: tuple[CheckOutcome, ...] = ()
    with _drafts(os.path.dirname(target)) as folder:
        draft = os.path.join(folder, f"draft{form.ending[0]}")
        if form.tolerance is None:
            content = _write_weights(draft, form, selected)
        else:
            network = configured(selected, model)
            content = _write_network(draft, form, network, selected)
            outcomes = _check_network(draft, form, network, check_size, own_rounding)
        name = os.path.basename(target)
        described = sidecar.describe(name, content, form, selected, model, outcomes)
        _target(path, force)  # again: all this took a while
        write_file(target + sidecar.SUFFIX, [sidecar.text(described)])
        _move(draft, target)
    return Exported(selected, path, len(content), described, outcomes)


def _write_weights(path: str, form: Format, selected: Selected) -> bytes:
    """Write the weights to a file and read them back; returns its content."""
    content = formats.weights_bytes(selected.weights, form)
    write_file(path, [content])
    _require_equal(read_file(path), selected.weights)
    return content


def _write_network(path: str, form: Format, network: MattingBase, selected: Selected) -> bytes:
    """Write the network to a file; returns its content."""
    if form.name == "torchscript":
        content = formats.torchscript_bytes(network)
    else:
        known = {n: str(v) for n, v in sidecar.origin(selected).items() if v is not None}
        content = formats.onnx_bytes(network, known)
    write_file(path, [content])
    return content


def _check_network(
    path: str,
    form: Format,
    network: MattingBase,
    check_size: tuple[int, int] | None,
    own_rounding: bool,
) -> tuple[CheckOutcome, ...]:
    """Compare the outputs of an exported file with the network's."""
    assert form.tolerance is not None
    run = (formats.run_onnx if form.name == "onnx" else formats.run_torchscript)(path)
    large = check_size or check_memory.largest(network, check_memory.available_memory())
    return check.check(network, run, check.cases(network, large), form.tolerance, own_rounding)


def _require_equal(found: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raise an ExportError unless both hold the same tensors to the bit."""
    for name, tensor in weights.items():
        other = found.get(name)
        equal = other is not None and other.dtype == tensor.dtype
        if other is None or not equal or not torch.equal(bits_of(other), bits_of(tensor)):
            raise ExportError(f"the file does not hold {name} as it is: it was removed")
    if len(found) != len(weights):
        raise ExportError(
            f"the file holds {len(found)} tensors, not {len(weights)}: it was removed"
        )


@contextmanager
def _drafts(folder: str) -> Iterator[str]:
    """Make a folder beside the file for what has not passed its check; a rename out of it is atomic."""
    try:
        made = tempfile.TemporaryDirectory(prefix=".raymat-", dir=folder)
    except OSError as error:
        raise classify(error, "write").error("write", folder) from error
    with made as temporary:
        yield temporary


def _target(path: str, force: bool) -> str:
    """Return the absolute path of the file to write, links followed; a ConfigError if it cannot be written."""
    format_of(path)
    target = os.path.realpath(path)
    check_new_files(path, {target: path, target + sidecar.SUFFIX: path + sidecar.SUFFIX}, force)
    return target


def _move(draft: str, target: str) -> None:
    try:
        os.replace(draft, target)
    except OSError as error:
        raise classify(error, "write").error("write", target) from error
