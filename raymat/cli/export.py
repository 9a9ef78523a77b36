"""`raymat export`: a checkpoint's network as weights, TorchScript or ONNX, checked as it is made."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from raymat.config.sections import RefineMode
from raymat.console import Url, parse_options
from raymat.errors import ConfigError
from raymat.export.exporter import OVERRIDES, export_network


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a network as FILE, and what one must know to run it as FILE.json.

    By FILE's ending: .pth, .pt, .ckpt, .bin (a plain state dict under the published names, also for
    --init), .safetensors (the same), .ts (TorchScript), .onnx (needs the extra: pip install
    'raymat[onnx]'). TorchScript and ONNX take any batch, and any height and width that are
    multiples of 4; their outputs are compared with the network's at three sizes and on extreme
    pictures. The file appears when it is whole and has passed. Exit code: 0; 1 if it failed its
    check, and is not there; 2 if it could not be written.
    """

    url: Url
    """STORAGE/NAME of a run (its newest verified checkpoint), with @STEP, @best or @ema after it,
    STORAGE/NAME/checkpoints/step-... of a checkpoint, or a weights file; any fsspec URL."""
    output: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The file to write, in a folder of this machine that exists."""
    force: bool = False
    """Replace the file if it exists."""
    refine_mode: RefineMode | None = None
    """Of the refiner: full, sampling or thresholding. Default, as for the three below: what the run has."""
    backbone_scale: float | None = None
    """The base network works at this scale of the picture, at most 0.5."""
    refine_sample_pixels: int | None = None
    """Pixels refined per picture when sampling."""
    refine_threshold: float | None = None
    """Error from which a patch is refined when thresholding."""
    check_size: str | None = None
    """HEIGHTxWIDTH of the largest pictures to check with. Default: 2160x3840 (base: 540x960) or what
    half of the free memory takes."""
    tolerance: float | None = None
    """Largest difference of an output that passes. Default: 1e-4 for ONNX, 1e-5 for TorchScript."""


def main(argv: Sequence[str]) -> int:
    """`raymat export URL -o FILE`; returns the exit code. Raises RaymatError if it is not written."""
    options = parse_options(Options, argv, "raymat export")
    overrides = {name: getattr(options, name) for name in OVERRIDES}
    notes: list[str] = []
    found = export_network(
        options.url,
        options.output,
        force=options.force,
        on_skip=lambda checkpoint, reason: notes.append(reason),
        overrides={name: value for name, value in overrides.items() if value is not None},
        check_size=None if options.check_size is None else parse_size(options.check_size),
        tolerance=options.tolerance,
    )
    # Where nothing was left to take, the error says why.
    for reason in notes:
        print(f"note: passed over: {reason}", file=sys.stderr)
    print(found.text)
    return 0


def parse_size(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH, both positive multiples of 4; else a ConfigError."""
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(found) < 4 or found[0] % 4 or found[1] % 4:
        raise ConfigError(
            f"--check-size must be HEIGHTxWIDTH, both multiples of 4, as in 2160x3840: got {text!r}"
        )
    return found
