"""What the last bits of a run's results depend on, beside the run itself: processors, cards, versions and settings.

Each worker states it when an attempt begins. It is written with the attempt and into each checkpoint, so that whoever
resumes knows whether it computes as those did that made the weights. Beside what can be named there is a trial: a small
computation whose digest also tells what nobody thought of (`benchmarks/what_bits_depend_on.py` measures what matters).
"""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy
import PIL
import simplejpeg
import torch

from raymat.config.sections import Precision, Recipe
from raymat.data.composite import usual_way
from raymat.data.compositing.fused_batch import fused_obstacle
from raymat.data.synthetic.picture_trial import picture_trial
from raymat.train.optim.mixed_precision import parameter_dtype
from raymat.train.optim.step_trial import step_trial

SETTINGS = re.compile(
    r"ATEN_CPU_CAPABILITY|MKL_(CBWR|ENABLE_INSTRUCTIONS)|(ONEDNN|DNNL)_(MAX_CPU_ISA|CPU_ISA_HINTS|DEFAULT_FPMATH_MODE)"
    r"|OPENCV_(CPU_DISABLE|IPP)|NVIDIA_TF32_OVERRIDE|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|CUBLAS_WORKSPACE_CONFIG"
)
"""Names of environment variables that change bits."""

_INSTRUCTIONS = re.compile(r"avx\w*|amx\w*|fma|f16c|asimd\w*|sve\w*|bf16|i8mm|fphp")
"""Those of a processor's that libraries choose their code by."""

_KINDS = {
    "device": ("device",),
    "processor": ("processor", "vectors", "instructions"),
    "card": ("card",),
    "compositing": ("compositing",),
    "versions": (
        *("torch", "onednn", "mkl", "cuda", "cudnn", "triton"),
        *("opencv", "simplejpeg", "pillow", "numpy"),
    ),
    "settings": ("threads", "environment"),
}
"""The facts that are compared, by what people call them; the trials aside."""
_TRIALS = ("step trial", "picture trial")

Facts = Mapping[str, str]


@dataclass(frozen=True)
class Arithmetic:
    """What the last bits of a group of workers' results depend on."""

    workers: tuple[Facts, ...]
    """Facts by name: one set if all workers are alike, else each rank's."""

    @classmethod
    def of(cls, gathered: Sequence[Facts]) -> Arithmetic:
        """Return that of workers that stated these facts, by rank."""
        alike = all(facts == gathered[0] for facts in gathered)
        return cls(tuple(gathered[:1] if alike else gathered))

    @classmethod
    def read(cls, stored: Any) -> Arithmetic | None:
        """Return what `stored` says, from a checkpoint or an event; None if it does not say it."""
        if not isinstance(stored, list) or not stored:
            return None
        return cls(tuple(dict(facts) for facts in stored))

    def store(self) -> list[dict[str, str]]:
        """Return it as it is stored."""
        return [dict(facts) for facts in self.workers]

    def difference(self, before: Arithmetic) -> str | None:
        """Return what is other than `before`, in words; None if nothing is that both of them state."""
        count = max(len(self.workers), len(before.workers))
        pairs = [(before.rank(rank), self.rank(rank)) for rank in range(count)]
        return _told(
            pairs, lambda kind: f"{'' if kind.endswith('s') else 'an'}other {kind}", "{2} -> {3}"
        )

    @property
    def mixture(self) -> str | None:
        """What differs between the workers, in words; None if nothing does."""
        pairs = list(itertools.pairwise(self.workers))
        return _told(
            pairs, lambda kind: f"different {kind.rstrip('s')}s", "of rank {0} {2}, of rank {1} {3}"
        )

    def rank(self, rank: int) -> Facts:
        """Return the facts of the worker `rank`, of which there may be fewer."""
        return self.workers[min(rank, len(self.workers) - 1)]


def arithmetic_here(
    device: torch.device, precision: Precision, recipe: Recipe, environment: Mapping[str, str]
) -> Facts:
    """State what the last bits of this process's results depend on, after its number of threads is set.

    Takes some hundredths of a second. `environment`: of this process.
    """
    found = {"device": device.type, "threads": str(torch.get_num_threads())}
    found |= _processor() | _versions()
    settings = sorted(name for name in environment if SETTINGS.fullmatch(name))
    found["environment"] = " ".join(f"{name}={environment[name]}" for name in settings) or "-"
    found["picture trial"] = picture_trial()
    if device.type == "cuda":
        return found | _card(device) | compositing_on(device, precision, recipe)
    return found | {"step trial": step_trial(precision)}


def _processor() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except (OSError, UnicodeDecodeError):
        text = ""
    rows = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    said = {name.strip(): value.strip() for name, value in rows}
    model = [said.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name")]
    flags = said.get("flags", said.get("Features", "")).split()
    return {
        "processor": " ".join(filter(None, model)) or platform.processor() or platform.machine(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "instructions": " ".join(sorted({f for f in flags if _INSTRUCTIONS.fullmatch(f)})) or "-",
    }


def _card(device: torch.device) -> dict[str, str]:
    card = torch.cuda.get_device_properties(device)
    kind = f"{card.name}, compute capability {card.major}.{card.minor}, {card.multi_processor_count} multiprocessors"
    return {
        "card": kind,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def compositing_on(device: torch.device, precision: Precision, recipe: Recipe) -> dict[str, str]:
    """State how `device` composes batches; from recipe 4 on what compiles its fused kernels, or why there are none."""
    way = usual_way(device, recipe, parameter_dtype(precision))
    if way == "fused":
        return {"compositing": way, "triton": importlib.metadata.version("triton")}
    obstacle = None if recipe in ("1", "2", "3") else fused_obstacle(device)
    # Not compared: bits depend on the way, not on the reason for it.
    return {"compositing": way} | ({} if obstacle is None else {"no fused kernels": obstacle})


def _versions() -> dict[str, str]:
    built = torch.__config__.show()
    found = {
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "simplejpeg": simplejpeg.__version__,
        "pillow": PIL.__version__,
        "numpy": numpy.__version__,
    }
    for name, pattern in (
        ("onednn", r"MKL-DNN v([\d.]+)"),
        ("mkl", r"Math Kernel Library Version (\S+)"),
    ):
        if (match := re.search(pattern, built)) is not None:
            found[name] = match[1]
    return found


def _told(pairs: list[tuple[Facts, Facts]], head: Callable[[str], str], form: str) -> str | None:
    """Say what differs within pairs of facts: by kind, each difference once, and what the trials show.

    `head`: names a kind whose facts differ. `form`: takes the ranks and the facts of a pair.
    """
    said = []
    for kind, names in _KINDS.items():
        found = [
            f"{name} " + form.format(rank, rank + 1, *_short(a[name], b[name]))
            for name in names
            for rank, (a, b) in enumerate(pairs)
            if a.get(name, "") != b.get(name, "") and name in a and name in b
        ]
        if found:
            said.append(f"{head(kind)} ({', '.join(dict.fromkeys(found))})")
    tried = [
        (name, a[name] == b[name]) for name in _TRIALS for a, b in pairs if name in a and name in b
    ]
    other = list(dict.fromkeys(name.removesuffix(" trial") for name, same in tried if not same))
    what = " and ".join(said)
    if other:
        return (
            f"{what or head('arithmetic')}: a trial {' and a trial '.join(other)} gives other bits"
        )
    return (
        f"{what}: trials give the same bits, other computations may not"
        if what and tried
        else what or None
    )


def _short(a: str, b: str) -> tuple[str, str]:
    """Leave out of two lists of words what they have in common, if they are long."""
    if len(a) + len(b) < 100:
        return a, b
    first, second = a.split(), b.split()
    return tuple(  # type: ignore[return-value]
        " ".join(word for word in mine if word not in theirs) or "without them"
        for mine, theirs in ((first, second), (second, first))
    )
