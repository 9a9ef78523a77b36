"""How normal and how white the noise of recipe 3 is, and what it costs beside torch's generator and Philox in torch.

    python benchmarks/noise_quality.py [--examples 200] [--side 256]

Values of all examples: mean, deviation, skewness, kurtosis beyond the normal distribution's, and the largest difference of the
distributions (Kolmogorov). The largest correlation of two pixels at any of side^2 - 1 distances, mean over all planes, beside what
torch's generator gives; the same for the signs and for the squares of the values. Times on one thread, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from raymat.data.compositing.noise_field import noise_words, normal_field

MULTIPLIERS = torch.tensor([[0xD2511F53], [0xCD9E8D57]], dtype=torch.int64)
KEYS = (0x9E3779B9, 0xBB67AE85)
KNOWN = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
"""What Random123 gives for a counter and a key of zeros."""


def ours(number: int, side: int) -> Tensor:
    words = torch.from_numpy(noise_words(0, number, side, side))
    return normal_field(words[None], side, side)[0]


def torchs(number: int, side: int) -> Tensor:
    return torch.randn((2, 3, side, side), generator=torch.Generator().manual_seed(number))


def philox(number: int, side: int) -> Tensor:
    """Draw as much from Philox 4x32-10 in torch's integer operations, as 16-bit numbers that still have to be looked up."""
    words = philox_words(6 * side**2 // 8, number)
    return words.view(torch.uint16).to(torch.int32)


def philox_words(counters: int, key: int) -> Tensor:
    """Return Philox 4x32-10 of the counters 0..counters-1, int32 (4, counters)."""
    left = torch.zeros((2, counters), dtype=torch.int64)
    left[0] = torch.arange(counters)
    right = torch.zeros((2, counters), dtype=torch.int32)
    for turn in range(10):
        halves = (left * MULTIPLIERS).view(torch.int32).view(2, counters, 2)
        keys = [(part + turn * step) % 2**32 for part, step in zip((key, 0), KEYS, strict=True)]
        mixed = halves[..., 1].flip(0).bitwise_xor_(right)
        mixed.bitwise_xor_(torch.tensor(keys).to(torch.int32).view(2, 1))
        left, right = mixed.view(torch.uint32).to(torch.int64), halves[..., 0].flip(0)
    return torch.stack((mixed[0], right[0], mixed[1], right[1]))


def correlation(draw: Callable[[int, int], Tensor], examples: int, side: int) -> list[float]:
    """Return the largest correlation at any distance: of the values, of their signs, of their squares."""
    found = []
    for change in (lambda x: x, np.sign, lambda x: (x * x - 1) / 2**0.5):
        power = sum(
            (np.abs(np.fft.fft2(change(draw(n, side).numpy()))) ** 2).mean((0, 1))
            for n in range(examples)
        )
        whole = np.fft.ifft2(power).real
        found.append(float(np.abs(whole.ravel()[1:] / whole[0, 0]).max()))
    return found


def print_quality(name: str, draw: Callable[[int, int], Tensor], examples: int, side: int) -> None:
    values = np.concatenate([draw(n, side).numpy().ravel() for n in range(examples)])
    distance = max(stats.kstest(part, "norm").statistic for part in (values[: 10**7],))
    near = " ".join(f"{value:.5f}" for value in correlation(draw, examples, side))
    print(
        f"{name:8} mean {values.mean():+.5f} deviation {values.std():.5f} skewness {stats.skew(values):+.5f} "
        f"kurtosis {stats.kurtosis(values):+.5f} largest {np.abs(values).max():.2f} Kolmogorov {distance:.5f} "
        f"correlations {near}"
    )


def print_times(side: int, rounds: int = 15) -> None:
    ways = {"raymat": ours, "torch": torchs, "Philox 4x32-10 in torch, 16 bits a value": philox}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, draw in ways.items():
            begun = time.process_time()
            draw(turn, side)
            seconds[name].append(time.process_time() - begun)
    for name, taken in seconds.items():
        print(f"{name}: {statistics.median(taken) * 1e9 / (6 * side**2):.2f} ns a value")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--side", type=int, default=256, help="side of the pictures in pixels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first = [word % 2**32 for word in philox_words(1, 0).flatten().tolist()]
    assert first == KNOWN, "this Philox is none"
    print_quality("raymat", ours, options.examples, options.side)
    print_quality("torch", torchs, options.examples, options.side)
    print_times(options.side)


if __name__ == "__main__":
    main()
