"""Draws come from their key alone, and are what the published generator gives."""

from __future__ import annotations

import numpy as np
import pytest

from raymat.data.rng import Draws, Stream

MASK = 2**64 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x64 with 10 rounds, written down from Salmon et al., SC 2011."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        left, right = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (right >> 64) ^ b ^ k0, right & MASK, (left >> 64) ^ d ^ k1, left & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [a, b, c, d]


def test_the_independent_philox_gives_the_published_answers() -> None:
    assert philox([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    assert philox([MASK] * 4, [MASK] * 2) == [
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    ]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**63 - 1])
@pytest.mark.parametrize("number", [0, 1, 10**9, 2**40 + 3])
def test_words_are_philox_of_seed_stream_and_number(seed: int, number: int) -> None:
    expected = [
        word for block in (1, 2) for word in philox([block, 0, number, 0], [seed, int(Stream.CROP)])
    ]
    assert Draws(seed, Stream.CROP, number).words(8).tolist() == expected


def test_the_numbers_of_one_key_never_change() -> None:
    draws = Draws(42, Stream.BACKGROUND, 7)
    assert draws.words(2).tolist() == [903442346062745129, 5923947787800684510]
    assert draws.integer(0, 1000) == 319
    assert draws.torch_seed() == 6982669182507615410
    assert Draws(42, Stream.ORDER, 0).permutation(8).tolist() == [4, 5, 3, 0, 2, 7, 1, 6]


def test_drawing_one_by_one_gives_what_drawing_at_once_gives() -> None:
    one_by_one = Draws(3, Stream.PHOTOMETRIC, 5)
    singles = [one_by_one.uniform() for _ in range(9)]
    assert Draws(3, Stream.PHOTOMETRIC, 5).uniforms(9).tolist() == singles


def test_no_two_keys_share_a_word() -> None:
    keys = [(s, t, n) for s in (0, 1, 42, 43) for t in Stream for n in (0, 1, 2, 1000)]
    words = np.concatenate([Draws(*key).words(50) for key in keys])
    assert len(np.unique(words)) == len(words)


def test_numbers_are_uniform_and_within_their_bounds() -> None:
    u = Draws(0, Stream.NOISE, 0).uniforms(100_000)
    assert u.min() >= 0
    assert u.max() < 1
    assert np.histogram(u, 10, (0, 1))[0] == pytest.approx(np.full(10, 10_000), rel=0.04)
    draws = Draws(0, Stream.NOISE, 1)
    assert {draws.integer(-2, 3) for _ in range(300)} == {-2, -1, 0, 1, 2}
    assert sum(draws.chance(0.1) for _ in range(10_000)) == pytest.approx(1000, rel=0.1)
    assert all(2.5 <= draws.uniform(2.5, 2.75) < 2.75 for _ in range(300))


def test_a_permutation_has_every_place_once_and_is_uniform() -> None:
    assert sorted(Draws(1, Stream.ORDER, 0).permutation(1000).tolist()) == list(range(1000))
    first = [int(Draws(1, Stream.ORDER, e).permutation(5)[0]) for e in range(2000)]
    assert np.bincount(first) == pytest.approx(np.full(5, 400), rel=0.2)
