"""Counter-based random numbers: every draw comes from a key, never from a shared generator.

A key is (seed, stream, number). `seed` is the run's, `stream` says what the numbers are for,
`number` is an example number, a step or an epoch. The bits come from Philox 4x64-10 (Salmon et al.,
"Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) with seed and stream as its key and the
number in its counter, so that two keys never share bits: seed 42, epoch 1 is not seed 43, epoch 0.
Only raw 64-bit words are taken from numpy, whose distributions may change between versions.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """Purpose of a draw. Resumed runs rely on the values: never renumber, only append."""

    ORDER = 1  # number: epoch (pass over the dataset)
    BACKGROUND = 2  # number: example
    CROP = 3  # number: step
    PAIR_WARP = 4  # number: example
    BACKGROUND_WARP = 5  # number: example
    PHOTOMETRIC = 6  # number: example
    NOISE = 7  # number: example; seed of torch's generator, up to recipe 2
    DROPOUT = 8  # number: example
    SYNTHETIC_PAIR = 9  # number: pair index
    SYNTHETIC_BACKGROUND = 10  # number: background index
    REPLACEMENT = 11  # number: example; 2**63 + validation example
    VALID_PAIR_WARP = 12  # number: validation example
    VALID_BACKGROUND_WARP = 13  # number: validation example
    VALID_BACKGROUND = 14  # number: validation example
    INIT = 15  # number: 0; weights of a network that starts from nothing
    NOISE_FIELD = 16  # number: example; rows and columns of its noise, from recipe 3 on


class Draws:
    """Sequence of draws from one key; two objects with the same key give the same sequence."""

    def __init__(self, seed: int, stream: Stream, number: int) -> None:
        self._bits = np.random.Philox(
            key=np.array([seed, int(stream)], dtype=np.uint64),
            counter=np.array([0, 0, number, 0], dtype=np.uint64),
        )

    def words(self, count: int) -> NDArray[np.uint64]:
        """Draw `count` raw words, each uniform over all 64-bit values."""
        return self._bits.random_raw(count)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Draw `count` numbers uniform in [0, 1), with 53 bits."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw one number uniform in [low, high)."""
        return low + (high - low) * float(self.uniforms(1)[0])

    def integer(self, low: int, high: int) -> int:
        """Draw one integer uniform in low..high, `high` excluded (bias below 2**-53 * range)."""
        return low + min(int(self.uniforms(1)[0] * (high - low)), high - low - 1)

    def chance(self, probability: float) -> bool:
        """Draw True with the given probability."""
        return bool(self.uniforms(1)[0] < probability)

    def permutation(self, count: int) -> NDArray[np.int64]:
        """Draw a uniform permutation of 0..count-1: the order of `count` random words (ties: by position)."""
        return np.argsort(self.words(count), kind="stable")

    def torch_seed(self) -> int:
        """Draw a seed for `torch.Generator.manual_seed`, 0..2**63-1."""
        return int(self.words(1)[0] >> np.uint64(1))
