"""What a preflight looks at, and how much of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from raymat.analysis.preflight.findings import Finding
from raymat.config.run import RunConfig
from raymat.config.settled import with_pace
from raymat.console import ProgressBar
from raymat.data.dataset.listing import Listing
from raymat.data.dataset.source import Source
from raymat.data.lineage import NO_LINEAGE
from raymat.train.run.extension import total_examples


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run that is not begun: its configuration, its pictures, and how many of them are looked at."""

    config: RunConfig
    listing: Listing | None = None
    """None: the pictures are made, or could not be listed."""
    source: Source | None = None
    """None: there are no pictures."""
    sample: int | None = None
    """Pictures of each kind that are looked at; None: all."""
    stores: bool = True
    """Whether the storage was named."""
    progress: ProgressBar | None = None
    """Shows how many files were looked at."""

    @property
    def trainable(self) -> bool:
        """Whether there is anything to train on."""
        return self.source is not None and min(self.source.pairs, self.source.backgrounds) > 0

    @property
    def steps(self) -> int | None:
        """Steps of the run; None if there is nothing to train on."""
        if self.source is None or not self.trainable:
            return None
        config = with_pace(self.config, self.source.pairs)
        examples = total_examples(config, self.source.pairs, NO_LINEAGE)
        return math.ceil(examples / config.data.batch_size)

    def chosen(self, count: int, purpose: int) -> list[int] | range:
        """Choose which of `count` to look at, by the run's seed: all, or a sample in random order.

        `purpose` keeps the samples of two kinds of things apart.
        """
        if self.sample is None or self.sample >= count:
            return range(count)
        bits = np.random.Philox(key=np.array([self.config.data.seed, purpose], dtype=np.uint64))
        drawn = np.random.Generator(bits).choice(count, self.sample, replace=False)
        return [int(index) for index in drawn]


Check = Callable[[Subject], Iterator[Finding]]
"""Yields what it finds; raises DataError or StorageError where it cannot look."""


def threads() -> int:
    """Return how many threads decode: decoders leave Python to others while they work."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
