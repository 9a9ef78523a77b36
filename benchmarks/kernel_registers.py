"""Compiles the fused compositing kernels for cards that are not here, and prints what each takes of a card.

    python benchmarks/kernel_registers.py [--capabilities 75 80 90]

Needs Triton, which comes with torch's CUDA build, and no card: its own ptxas makes the machine code. Each kernel is compiled as it
would be launched, for a batch with every augmentation. Registers are those of a thread, of which a program has 128; what does not
fit spills to memory. Ends with status 1 if a kernel spills or cannot be compiled.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raymat.data.compositing.fused_batch import FusedBatch
from raymat.data.compositing.photometric_draws import Affine, Jitter, Noise, Photometric, Shadow

JITTER = Jitter(("brightness", "contrast", "saturation", "hue"), 1.1, 0.9, 1.1, 0.05)
EVERYTHING = Photometric(
    2, True, JITTER, 3, True, JITTER, Shadow(0.2, Affine(2, (0.1, 0)), 20), Noise(0.01, 0.02, 0),
    JITTER, Affine(1, (0.01, 0)),
)  # fmt: skip
SIDE = 64


def launches() -> dict[tuple[str, str], tuple[Any, ...]]:
    """Return the operands of each way in which a kernel is compiled, by its name and what it is compiled for."""
    found: dict[tuple[str, str], tuple[Any, ...]] = {}

    def record(name: str, grid: tuple[int, int], *operands: Any, **constants: Any) -> None:
        chosen = " ".join(key for key, value in constants.items() if value is True)
        found.setdefault((name, chosen), (operands, constants))

    pixels = tuple(
        torch.zeros((2, SIDE, SIDE, *more), dtype=torch.uint8) for more in ((3,), (), (3,))
    )
    for memory_format in (torch.contiguous_format, torch.channels_last):
        batch = FusedBatch([EVERYTHING] * 2, (SIDE, SIDE), 1.0, record)
        batch.compose(pixels, (0, range(2)), memory_format)  # type: ignore[arg-type]
    return found


def compiled(name: str, operands: Any, constants: dict[str, Any], capability: int) -> Any:
    """Return a kernel as Triton's launcher would compile it for a card of `capability` (80: 8.0)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    from raymat.data.compositing import fused_kernels

    kernel, target = getattr(fused_kernels, name), GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*operands, **constants)
    options, signature, constexprs, attributes = kernel._pack_args(
        backend, options, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constexprs, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def usage(ptx: str, capability: int) -> tuple[int, int]:
    """Return the registers of a thread and the bytes that it spills, as ptxas says."""
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx, encoding="utf-8")
        said = subprocess.run(
            [get_ptxas(capability).path, "-v", f"--gpu-name=sm_{capability}{'a' if capability == 90 else ''}",
             str(source), "-o", str(Path(folder, "kernel.cubin"))],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    registers = int(re.findall(r"Used (\d+) registers", said)[0])
    return registers, sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said))


def lines(capabilities: list[int]) -> Iterator[tuple[str, bool]]:
    for (name, chosen), (operands, constants) in launches().items():
        cells, right = [], True
        for capability in capabilities:
            kernel = compiled(name, operands, constants, capability)
            registers, spilled = usage(kernel.asm["ptx"], capability)
            right &= not spilled and len(kernel.asm["cubin"]) > 0
            cells.append(f"{registers:4} {spilled:4}")
        yield f"{name + ' ' + chosen:24} {'   '.join(cells)}", right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capabilities", type=int, nargs="+", default=[75, 80, 90])
    options = parser.parse_args()
    print(
        f"{'registers, bytes spilled':24} " + "   ".join(f"sm_{c:<6}" for c in options.capabilities)
    )
    wrong = 0
    for line, right in lines(options.capabilities):
        print(line, flush=True)
        wrong += not right
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
