"""Encodes networks as weights, TorchScript and ONNX, and runs the latter two.

`raymat.export.check` compares what was encoded with the network.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from raymat.errors import ConfigError, ExportError, first_line
from raymat.export.portable import portable
from raymat.model.matting import MattingBase, MattingRefine
from raymat.train.run.weights_reference import WEIGHT_FILES

Run = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""From src and bgr (n, 3, H, W) to the network's outputs."""

OPSET = 18
"""Of ONNX: the one that torch's exporter writes natively, and the first whose Resize does all that the networks need."""

BASE_OUTPUTS = ("pha", "fgr", "err", "hid")
REFINE_OUTPUTS = ("pha", "fgr", "pha_sm", "fgr_sm", "err_sm", "ref_sm")

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Format:
    """A file format for networks."""

    name: str
    ending: tuple[str, ...]
    tolerance: float | None = None
    """Largest difference from the network's outputs that passes; None if weights are compared to the bit instead."""


WEIGHTS = Format("weights", tuple(end for end in WEIGHT_FILES if end != ".safetensors"))
SAFETENSORS = Format("safetensors", (".safetensors",))
# The same kernels in the same order: nothing differs unless TorchScript fuses something.
TORCHSCRIPT = Format("torchscript", (".ts",), 1e-5)
# Other kernels sum up to 18,432 float32 products in another order, which differs by about 1e-6 in practice; a hundred
# times that is still a fortieth of a step of an 8-bit picture.
ONNX = Format("onnx", (".onnx",), 1e-4)

FORMATS = (WEIGHTS, SAFETENSORS, TORCHSCRIPT, ONNX)


def format_of(path: str) -> Format:
    """Return the format that a file's name asks for.

    Raises:
        ConfigError: there is none, or a package that it needs is not installed.
    """
    found = next((one for one in FORMATS if path.endswith(one.ending)), None)
    if found is None:
        raise ConfigError(
            f"--output must end in {', '.join(WEIGHTS.ending)} or .safetensors (weights, by which --init knows them), "
            f".ts (TorchScript) or .onnx: got {path!r}"
        )
    if found is ONNX:
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"writing and checking ONNX needs {', '.join(missing)}: pip install 'raymat[onnx]'"
            )
    return found


def outputs_of(network: MattingBase) -> tuple[str, ...]:
    """Return the names of a network's outputs, in order."""
    return REFINE_OUTPUTS if isinstance(network, MattingRefine) else BASE_OUTPUTS


def weights_bytes(
    weights: Mapping[str, Tensor], form: Format, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Encode a state dict as .pth or .safetensors; `metadata` goes into the header of the latter."""
    if form is SAFETENSORS:
        import safetensors.torch

        whole = {name: tensor.contiguous() for name, tensor in weights.items()}
        return safetensors.torch.save(whole, dict(metadata or {"format": "pt"}))
    content = io.BytesIO()
    torch.save(dict(weights), content)
    return content.getvalue()


def torchscript_bytes(network: MattingBase) -> bytes:
    """Encode a network (in evaluation mode, on the CPU) as TorchScript for any batch, height and width."""
    content = io.BytesIO()
    with _quiet(), torch.no_grad():
        # `raymat.export.check` does the checking; torch's own repeats the same size only.
        torch.jit.save(torch.jit.trace(portable(network), _example(), check_trace=False), content)
    return content.getvalue()


def onnx_bytes(network: MattingBase, properties: Mapping[str, str]) -> bytes:
    """Encode a network (in evaluation mode, on the CPU) as ONNX for any batch, height and width, in one file.

    Raises:
        ExportError: torch cannot express the network in ONNX.
    """
    import onnx

    sizes = {0: "batch", 2: "height", 3: "width"}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                portable(network),
                _example(),
                dynamo=True,
                dynamic_shapes=(sizes, sizes),
                input_names=["src", "bgr"],
                output_names=list(outputs_of(network)),
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = first_line(error)[:300]
        raise ExportError(f"torch cannot write this network as ONNX: {reason}") from error
    assert program is not None
    model = program.model_proto
    # Each node carries the exporter's stack, with paths of this machine.
    for node in _nodes(model):
        del node.metadata_props[:]
    onnx.helper.set_model_props(model, dict(properties))
    model.producer_name = "raymat"
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def run_torchscript(path: str) -> Run:
    """Load a TorchScript archive to be run."""
    with _quiet():
        module = torch.jit.load(path, map_location="cpu")

    def run(src: Tensor, bgr: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(module(src, bgr))

    return run


def run_onnx(path: str) -> Run:
    """Load an ONNX model to be run by onnxruntime, on the CPU, with as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(src: Tensor, bgr: Tensor) -> tuple[Tensor, ...]:
        found = session.run(None, {"src": src.numpy(), "bgr": bgr.numpy()})
        return tuple(torch.from_numpy(array) for array in found)

    return run


def _example() -> tuple[Tensor, Tensor]:
    """Make pictures to trace with, whose sizes all differ and are special on no scale."""
    return torch.full((2, 3, 96, 136), 0.25), torch.full((2, 3, 96, 136), 0.75)


def _nodes(model: Any) -> Iterator[Any]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters say about themselves: TorchScript is deprecated, torchvision is missing."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
