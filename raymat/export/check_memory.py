"""What checking an export takes of memory, and the largest pictures that this machine can check with."""

from __future__ import annotations

import math
import os

from raymat.model.matting import MattingBase, MattingRefine

LARGE = ((2160, 3840), (1440, 2560), (1080, 1920), (720, 1280), (540, 960))
"""Height and width from 4K downwards, for the refiner; a base network sees a quarter of such a picture."""
LARGE_BASE = LARGE[-1:]

BYTES = {"base": 1600, "full": 1000, "sampling": 700, "thresholding": 2500}
"""Upper estimates of peak bytes per pixel, with every patch over the threshold; benchmarks/export_check.py --memory
measures them."""
BYTES_FLOAT64 = {"base": 6000, "full": 2400, "sampling": 700, "thresholding": 11_000}
"""The same of the network in float64, whose convolutions torch unfolds; measured by hand, with resnet50."""


def bytes_needed(network: MattingBase, height: int, width: int, float64: bool = False) -> int:
    """Estimate the bytes that checking at this size takes, beside the weights; `float64`: running the network so."""
    kind = network.refiner.mode if isinstance(network, MattingRefine) else "base"
    return (BYTES_FLOAT64 if float64 else BYTES)[kind] * height * width


def largest(network: MattingBase, available: float) -> tuple[int, int]:
    """Choose the largest size to check: 4K (a base network: a quarter of that), or less if half of `available` bytes is less."""
    sizes = LARGE if isinstance(network, MattingRefine) else LARGE_BASE
    fitting = [s for s in sizes if bytes_needed(network, *s) <= available / 2]
    return fitting[0] if fitting else sizes[-1]


def available_memory() -> float:
    """Return the bytes that this machine, and the container around this process, can still give."""
    return min(_free_of_machine(), _free_of_container())


def _free_of_machine() -> float:
    try:
        lines = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_of_container() -> float:
    """Read the limit of control groups, version 2; infinite without one."""
    try:
        most, now = (_read(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        return math.inf if most.strip() == "max" else int(most) - int(now)
    except (OSError, ValueError):
        return math.inf


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
