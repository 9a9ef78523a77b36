"""What an export changes: the largest output difference of each format and refiner mode, and its latency beside the network's.

Exports a network to TorchScript and ONNX in every mode, each checked as `raymat export` checks it, and prints one line a
format, mode and size: the largest difference of any output (of those over 1 in parts of the largest value), patches that
the runtime refined instead of others of equal error, and milliseconds of the network in torch and of the export on this
CPU, with --threads threads. Without --weights the network is a new one, whose outputs are what random weights give.

With --memory instead: peak bytes for each pixel of the check, from two sizes, a process each.

    python benchmarks/export_check.py [--weights URL] [--backbone mobilenetv2] [--check-size 2160x3840] [--modes full ...]
    python benchmarks/export_check.py --memory
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from raymat.cli.export import parse_size
from raymat.config.sections import ModelConfig
from raymat.console import columns
from raymat.export import check, formats
from raymat.export.check import Case
from raymat.export.exporter import export_network
from raymat.model.matting import build

MODES = ("base", "full", "sampling", "thresholding")
ENDINGS = {".ts": "TorchScript", ".onnx": "ONNX"}
WIDTHS = (11, 12, 14, 15, 7, 6, 6, 8, 8)
SIZES = ((720, 1280), (1080, 1920))


def weights_of(given: argparse.Namespace, stage: Any, folder: str) -> str:
    """A weights file of a new network."""
    path = os.path.join(folder, f"{stage}.pth")
    torch.save(build(stage, ModelConfig(backbone=given.backbone), 0).state_dict(), path)
    return path


def rows(given: argparse.Namespace, folder: str) -> Iterator[tuple[str, ...]]:
    """The table's lines."""
    large = parse_size(given.check_size) if given.check_size else None
    for mode in given.modes:
        stage = "base" if mode == "base" else "refine"
        source = given.weights or weights_of(given, stage, folder)
        overrides = {} if mode == "base" else {"refine_mode": mode}
        for ending, name in ENDINGS.items():
            path = os.path.join(folder, f"{mode}{ending}")
            # A base network is checked at its own size, a quarter.
            size = None if mode == "base" else large
            found = export_network(source, path, overrides=overrides, check_size=size)
            for one in found.outcomes:
                worst = max(one.differences, key=lambda output: one.differences[output])
                yield (
                    name,
                    mode,
                    one.case.kind,
                    one.case.size,
                    f"{one.differences[worst]:.1e}",
                    worst if one.differences[worst] else "",
                    str(one.others),
                    f"{1000 * one.eager_seconds:.0f}",
                    f"{1000 * one.export_seconds:.0f}",
                )


def print_table(given: argparse.Namespace) -> None:
    """All formats and modes, a line as soon as it is known."""
    head = ("format", "mode", "picture", "size", "largest", "of", "others", "ms torch", "ms")
    with tempfile.TemporaryDirectory() as folder:
        for row in itertools.chain([head], rows(given, folder)):
            cells = (f"{cell:<{width}}" for cell, width in zip(row, WIDTHS, strict=True))
            print("  ".join(cells).rstrip(), flush=True)


def network_of(mode: str, backbone: Any) -> Any:
    """A new network in this mode."""
    stage: Any = "base" if mode == "base" else "refine"
    refine_mode: Any = "full" if mode == "base" else mode
    model = ModelConfig(backbone=backbone, refine_mode=refine_mode)
    return build(stage, model, 0).eval().requires_grad_(False)


def peak(mode: str, backbone: str, size: tuple[int, int], path: str) -> int:
    """Peak resident bytes of this process after one comparison at this size."""
    case = Case("picture", 1, *size)
    check.compare(network_of(mode, backbone), formats.run_onnx(path), case, 1e-4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_memory(given: argparse.Namespace) -> None:
    """Bytes for each pixel, by mode."""
    found = [("mode", "bytes a pixel")]
    (_, low), (_, high) = pixels = [(size, size[0] * size[1]) for size in SIZES]
    for mode in given.modes:
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            file.write(formats.onnx_bytes(network_of(mode, given.backbone), {}))
            file.flush()
            peaks = []
            for (height, width), _ in pixels:
                command = [sys.executable, __file__, "--backbone", given.backbone]
                command += ["--peak", mode, f"{height}x{width}", file.name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks.append(int(done.stdout))
        found.append((mode, f"{(peaks[1] - peaks[0]) / (high - low):.0f}"))
    print(columns(found))


def main() -> None:
    """Parse and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", help="of a refine network; any URL that raymat export takes")
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--check-size", help="HEIGHTxWIDTH of the largest pictures")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        mode, size, path = given.peak
        print(peak(mode, given.backbone, parse_size(size), path))
    elif given.memory:
        print_memory(given)
    else:
        print_table(given)


if __name__ == "__main__":
    main()
