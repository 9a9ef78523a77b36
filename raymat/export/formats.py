"""What a network can be written as, and how each is run again: weights, TorchScript, ONNX.

Nothing here believes itself: `raymat.export.check` holds what was written against the network.
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
"""Of ONNX: what torch's exporter itself writes (others are converted from it), and the first whose Resize knows all we need."""

BASE_OUTPUTS = ("pha", "fgr", "err", "hid")
REFINE_OUTPUTS = ("pha", "fgr", "pha_sm", "fgr_sm", "err_sm", "ref_sm")

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Format:
    """A way to write a network."""

    name: str
    ending: tuple[str, ...]
    tolerance: float | None = None
    """The largest difference from the network's outputs that passes; None where weights are compared to the bit instead."""


WEIGHTS = Format("weights", tuple(end for end in WEIGHT_FILES if end != ".safetensors"))
SAFETENSORS = Format("safetensors", (".safetensors",))
# The same kernels in the same order: nothing differs unless TorchScript fuses something.
TORCHSCRIPT = Format("torchscript", (".ts",), 1e-5)
# Other kernels, which add up to 18,432 float32 products in another order: about 1e-6 in practice, and a hundred times more
# is still a fortieth of a step of an 8-bit picture.
ONNX = Format("onnx", (".onnx",), 1e-4)

FORMATS = (WEIGHTS, SAFETENSORS, TORCHSCRIPT, ONNX)


def format_of(path: str) -> Format:
    """The format that a file's name asks for.

    Raises:
        ConfigError: none, or what it needs is not installed.
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
    """The names of a network's outputs, in their order."""
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
    """A network (in evaluation mode, on the CPU) as a TorchScript archive for any batch, height and width."""
    content = io.BytesIO()
    with _quiet(), torch.no_grad():
        # Checking is exportcheck's; torch's own repeats the same size only.
        torch.jit.save(torch.jit.trace(portable(network), _example(), check_trace=False), content)
    return content.getvalue()


def onnx_bytes(network: MattingBase, properties: Mapping[str, str]) -> bytes:
    """A network (in evaluation mode, on the CPU) as an ONNX model for any batch, height and width, in one file.

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
    # Each node would carry the exporter's stack: paths of this machine.
    for node in _nodes(model):
        del node.metadata_props[:]
    onnx.helper.set_model_props(model, dict(properties))
    model.producer_name = "raymat"
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def run_torchscript(path: str) -> Run:
    """What runs a TorchScript archive."""
    with _quiet():
        module = torch.jit.load(path, map_location="cpu")

    def run(src: Tensor, bgr: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(module(src, bgr))

    return run


def run_onnx(path: str) -> Run:
    """What runs an ONNX model with onnxruntime, on the CPU, with as many threads as torch."""
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
    """Pictures to export with: sizes that are unlike each other, and none of which is special on any scale."""
    return torch.full((2, 3, 96, 136), 0.25), torch.full((2, 3, 96, 136), 0.75)


def _nodes(model: Any) -> Iterator[Any]:
    yield from model.graph.node
    for function in model.functions:
        yield from function.node


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of themselves: that TorchScript ages, that torchvision is not there."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
