"""Everything that only a GPU can show, in one command, cheapest first, each stage within a limit of its own.

    python benchmarks/gpu_check.py --budget 480
    python benchmarks/gpu_check.py --device cpu --budget 600     # tries the stages themselves, at small sizes

Prints one line of JSON as each stage ends: its name, seconds, whether it is right (`ok`), and its figures, or what went wrong.
A stage that hangs or crashes takes no other with it: each is a process of its own. Stages for which no time is left
are named as such. Ends with status 1 if a stage was wrong. How to read it: docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_stages import correctness, speed, whole_run

SIDE = 64


def machine(device: torch.device, side: int) -> dict[str, Any]:
    """What it runs on."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": about.name,
            "memory_gb": round(about.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    ones = torch.ones(64, 64, device=device)
    assert float((ones @ ones).sum()) == 64**3
    return found | {"cores": os.cpu_count()}


STAGES: dict[str, tuple[Callable[[torch.device, int], dict[str, Any]], float]] = {
    "machine": (machine, 60),
    "compositing": (correctness.compositing, 60),
    "batch norm": (correctness.batch_norm, 60),
    "scaler": (correctness.scaler, 60),
    "saves": (correctness.saves, 60),
    "resume": (correctness.resume, 90),
    "networks": (correctness.networks, 120),
    "two workers": (speed.two_workers, 120),
    "steps": (speed.steps, 120),
    "launches": (speed.launches, 60),
    "decoding": (whole_run.decoding, 60),
    "trainer": (whole_run.trainer, 240),
}
"""Each with the seconds that it may take, in order."""


def run_stage(name: str, device: torch.device) -> dict[str, Any]:
    """Return the line of a stage that is run here."""
    began = time.perf_counter()
    line: dict[str, Any] = {"stage": name, "ok": True}
    try:
        line["figures"] = STAGES[name][0](device, SIDE)
    except Exception:  # whatever a stage raises is what it found
        line |= {"ok": False, "error": traceback.format_exc()[-1500:]}
    return line | {"seconds": round(time.perf_counter() - began, 1)}


def started(name: str, device: str, limit: float) -> dict[str, Any]:
    """Return the line of a stage that is run in a process of its own, within `limit` seconds."""
    command = [sys.executable, __file__, "--device", device, "--stage", name]
    began = time.perf_counter()
    # A session of its own: what a stage has started ends with it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            told, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            told, errors = "", f"not done after {limit:.0f} s"
    try:
        found: dict[str, Any] = json.loads(told.strip().splitlines()[-1])
    except (IndexError, ValueError):
        found = {"stage": name, "ok": False, "error": errors[-1500:]}
    return found | {"wall": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for all stages")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Workers of a stage import it by name.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    )
    if options.stage:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        print(json.dumps(run_stage(options.stage, torch.device(options.device))))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU here: --device cpu tries the stages without one")
    until, wrong = time.perf_counter() + options.budget, False
    for name in options.stages:
        limit = min(STAGES[name][1], until - time.perf_counter())
        if limit < 5:
            line: dict[str, Any] = {"stage": name, "ok": None, "error": "no time was left for it"}
        else:
            line = started(name, options.device, limit)
        wrong = wrong or line["ok"] is False
        print(json.dumps(line), flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
