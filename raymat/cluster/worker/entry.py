"""The training function of every Ray Train worker, as drivers and Ray Train's controller know it.

Neither imports torch or the training loop: it would cost each seconds before the first step.
"""

from __future__ import annotations

from typing import Any


def train_worker(config: dict[str, Any]) -> None:
    """Train as one worker."""
    from raymat.cluster.worker.worker import train

    train(config["spec"])
