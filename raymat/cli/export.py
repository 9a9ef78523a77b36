"""`raymat export`: a network as weights, TorchScript or ONNX, checked before the file appears."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from raymat.cli.inputs import print_note
from raymat.config.command_line import parse_options
from raymat.config.options import Spelling, Url
from raymat.config.sections import RefineMode
from raymat.console import Display, columns, count, size
from raymat.errors import ConfigError
from raymat.export.check import CheckOutcome
from raymat.export.exporter import Exported, export_network
from raymat.export.formats import ONNX, TORCHSCRIPT
from raymat.export.own_rounding import TIMES
from raymat.train.run.refine_options import OVERRIDES


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a network to FILE, and a description of its inputs and outputs to FILE.json.

    FILE's ending decides the format: .pth, .pt, .ckpt, .bin (a plain state dict under the published names, also for
    --init), .safetensors (the same), .ts (TorchScript), .onnx (needs pip install 'raymat[onnx]'). TorchScript and
    ONNX take any batch, and any height and width that are multiples of 4; their outputs are compared with the
    network's at three sizes and on extreme pictures. FILE appears once it is whole and has passed. Exit code: 0; 1 if
    it failed the check and was removed; 2 if it could not be written.
    """

    url: Url
    """STORAGE/NAME of a run (its newest verified checkpoint), with @STEP, @best or @ema after it,
    STORAGE/NAME/checkpoints/step-... of a checkpoint, or a weights file; any fsspec URL."""
    output: Annotated[str, Spelling("FILE", short="-o")]
    """The file to write, in a folder of this machine that exists."""
    force: bool = False
    """Replace the file if it exists."""
    refine_mode: RefineMode | None = None
    """Refine mode: full, sampling or thresholding. Default here and for the next three: the run's."""
    backbone_scale: float | None = None
    """Scale of the picture at which the base network works, at most 0.5."""
    refine_sample_pixels: int | None = None
    """Pixels refined per picture when sampling."""
    refine_threshold: float | None = None
    """Predicted error above which a patch is refined when thresholding."""
    check_size: Annotated[str | None, Spelling("HEIGHTxWIDTH")] = None
    """HEIGHTxWIDTH of the largest pictures to check with. Default: 2160x3840 (base: 540x960), or the largest size that half
    of the free memory takes."""
    tolerance: float | None = None
    """Largest output difference that passes. Default: 1e-4 for ONNX, 1e-5 for TorchScript, and where the network in float32
    is itself so far from its result in float64, 4 times as much."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat export URL -o FILE` and return the exit code. Raises RaymatError if nothing is written."""
    options = parse_options(Options, argv, "raymat export")
    overrides = {name: getattr(options, name) for name in OVERRIDES}
    notes: list[str] = []
    with _waiting(options.output):
        found = export_network(
            options.url,
            options.output,
            force=options.force,
            on_skip=lambda checkpoint, reason: notes.append(reason),
            overrides={name: value for name, value in overrides.items() if value is not None},
            check_size=None if options.check_size is None else parse_size(options.check_size),
            tolerance=options.tolerance,
        )
    # Printed afterwards: where nothing was left to export, the error alone says why.
    for reason in notes:
        print_note(f"passed over: {reason}")
    print(text(found))
    return 0


@contextlib.contextmanager
def _waiting(output: str) -> Iterator[None]:
    """Say on a terminal why nothing is to be seen for a while."""
    display = Display()
    if not display.terminal or not output.endswith((*TORCHSCRIPT.ending, *ONNX.ending)):
        yield
        return
    display.show(f"writing {output}, and comparing it with the network: a minute or two")
    try:
        yield
    finally:
        display.clear()


def text(found: Exported) -> str:
    """Format where the network is from, the file, and how it was checked."""
    chosen, described = found.selected, found.sidecar
    opset = f" opset {described['opset']}" if described["opset"] else ""
    tensors = count(len(chosen.weights), "tensor")
    lines = [
        f"{chosen.what}: {chosen.checkpoint}" if chosen.checkpoint else chosen.what,
        f"{found.path}: {size(found.size)}, {described['format']}{opset}, {tensors}",
    ]
    if not found.outcomes:
        return "\n".join([*lines, "read back: equal to the bit"])
    return "\n".join([*lines, _table(found.outcomes), *_allowed(found)])


def _allowed(found: Exported) -> list[str]:
    """Say how much the export may differ, and where that was more since the network itself rounds so."""
    tolerance = found.sidecar["check"]["tolerance"]
    lines = [f"largest difference allowed: {tolerance:g}"]
    for one in found.outcomes:
        if one.rounding is not None:
            own = ", ".join(
                f"{name} {one.rounding[name].network:.1e}"
                for name, difference in one.differences.items()
                if difference > tolerance
            )
            lines.append(
                f"at {one.case.size} ({one.case.kind}) {TIMES} times the network's own rounding in float32: {own}"
            )
    return lines


def _table(outcomes: Sequence[CheckOutcome]) -> str:
    names = tuple(outcomes[0].differences)
    rows: list[tuple[str, ...]] = [
        ("checked on", "size", *names, "other patches", "network", "export")
    ]
    for one in outcomes:
        differences = (f"{one.differences[name]:.1e}" for name in names)
        seconds = (f"{1000 * s:.0f} ms" for s in (one.eager_seconds, one.export_seconds))
        rows.append((one.case.kind, one.case.size, *differences, str(one.others), *seconds))
    return columns(rows)


def parse_size(text: str) -> tuple[int, int]:
    """Parse HEIGHTxWIDTH, both positive multiples of 4. Raises ConfigError."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(found) < 4 or found[0] % 4 or found[1] % 4:
        raise ConfigError(
            f"--check-size must be HEIGHTxWIDTH, both multiples of 4, as in 2160x3840: got {text!r}"
        )
    return found
