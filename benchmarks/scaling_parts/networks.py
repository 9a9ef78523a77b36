"""What is counted on the networks themselves."""

from __future__ import annotations

from dataclasses import dataclass

from step_launches import network_of, step_counts
from torch import nn

from raymat.config.sections import Stage

SIDE = 128
"""Of the pictures in pixels: neither launches nor collectives depend on it."""


@dataclass(frozen=True)
class Network:
    """A stage's network with resnet50."""

    stage: Stage
    gradient_bytes: int
    """In fp32, as they are summed."""
    state_bytes: int
    """Of a checkpoint: weights, Adam's moments, running statistics."""
    layers: tuple[int, ...]
    """Channels of each batch norm."""
    launches: int
    """Of a step's forward, backward and update on one worker."""
    launches_of_many: int
    collectives: int
    """Of a step with several workers."""


def count(stage: Stage) -> Network:
    """Count on a network with resnet50."""
    network = network_of(stage, "resnet50")
    weights = sum(p.numel() for p in network.parameters())
    buffers = sum(b.numel() * b.element_size() for b in network.buffers())
    norms = [m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    (one, composing), (many, _) = (
        step_counts(stage, "resnet50", SIDE, workers, gpu=workers > 1) for workers in (1, 2)
    )
    return Network(
        stage,
        gradient_bytes=4 * weights,
        state_bytes=3 * 4 * weights + buffers,
        layers=tuple(norms),
        launches=one.total - composing.total,
        launches_of_many=many.total - composing.total,
        collectives=many.collectives.total(),
    )
