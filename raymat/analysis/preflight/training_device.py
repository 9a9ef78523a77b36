"""Whether the device that the run is to train on is there, as far as the machine that checks can tell."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from raymat.analysis.preflight.findings import Finding
from raymat.analysis.preflight.subject import Subject


def check_device(subject: Subject) -> Iterator[Finding]:
    """Of a run on GPUs, say that this machine has none: a note, since the run may train on others."""
    if not torch.cuda.is_available():
        yield Finding(
            "note",
            "this machine has no GPU: a run with --device cuda is refused here, and starts only on a cluster whose "
            "workers have one",
        )
