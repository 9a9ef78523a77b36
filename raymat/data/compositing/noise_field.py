"""Normal noise whose every bit comes from an example's key: the same on all devices.

Philox on the host gives two odd 32-bit numbers for each row and column of a field. The upper 16 bits of their product, modulo
2^32, choose one of 2^16 equally likely quantiles of the normal distribution from a table. There is nothing to round: the field of a
key is the same to the bit on every device, and on a device it costs a multiplication and a look-up. Along a row the products
are as independent as the columns' numbers are, and the other way round; `benchmarks/noise_quality.py` measures the rest.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymat.data.rng import Draws, Stream

LEVELS = 2**16
"""How many different values noise has."""

_FIELDS = 6
"""Fields of an example: three channels of the source, three of the background."""


def noise_words(seed: int, number: int, height: int, width: int) -> NDArray[np.int32]:
    """Draw the odd numbers of example `number`'s rows, field by field, and then those of its columns."""
    words = Draws(seed, Stream.NOISE_FIELD, number).words(_FIELDS * (height + width) // 2)
    return words.astype("<u8", copy=False).view("<i4").astype(np.int32, copy=False) | np.int32(1)


def normal_field(words: Tensor, height: int, width: int) -> Tensor:
    """Return standard normal noise (n, 2, 3, height, width), float32, of n examples' `words`, (n, 6 * (height + width)) int32.

    Height and width are even.
    """
    rows, columns = words.split((_FIELDS * height, _FIELDS * width), dim=1)
    products = rows.reshape(-1, 2, 3, height, 1) * columns.reshape(-1, 2, 3, 1, width)
    # The upper half of each little-endian product: its lower bits repeat sooner along a row.
    upper = products.view(torch.uint16)[..., 1::2].to(torch.int32)
    return quantiles_on(words.device).index_select(0, upper.flatten()).view(products.shape)


@lru_cache(maxsize=8)
def quantiles_on(device: torch.device) -> Tensor:
    """Return `quantiles` on a device."""
    return torch.from_numpy(quantiles()).to(device)


@lru_cache(maxsize=1)
def quantiles() -> NDArray[np.float32]:
    """Return the normal distribution's quantiles at (i + 1/2) / 2^16, float32 (2^16,).

    They are rounded to multiples of 2^-16, far coarser than what logarithms of different libraries differ by.
    """
    normal, half = NormalDist(), LEVELS // 2
    upper = np.array([normal.inv_cdf((i + 0.5) / LEVELS) for i in range(half, LEVELS)])
    rounded = np.round(upper * 2**16) / 2**16
    return np.concatenate((-rounded[::-1], rounded)).astype(np.float32)
