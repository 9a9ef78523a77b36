from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from raymat.model.dropout import SeededDropout, set_dropout_seeds

ONES = torch.ones(3, 16, 8, 8)


def dropped(seeds: list[int], x: Tensor, host_bits: bool = True) -> Tensor:
    module = SeededDropout(0.5)
    set_dropout_seeds(module, torch.tensor(seeds, dtype=torch.int64), host_bits)
    return module(x)


@pytest.mark.parametrize("host_bits", [False, True])
def test_a_mask_depends_on_its_seed_not_on_the_place_in_the_batch(host_bits: bool) -> None:
    together, alone = dropped([5, 6, 7], ONES, host_bits), dropped([6], ONES[:1], host_bits)
    assert torch.equal(together[1], alone[0])
    assert torch.equal(dropped([6, 7, 5], ONES, host_bits)[2], together[0])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("host_bits", [False, True])
def test_a_mask_is_the_same_again_and_in_every_precision_and_memory_format(
    host_bits: bool,
) -> None:
    first = dropped([5, 6, 7], ONES, host_bits)
    for x in (ONES, ONES.double(), ONES.bfloat16(), ONES.to(memory_format=torch.channels_last)):
        again = dropped([5, 6, 7], x, host_bits)
        assert again.dtype == x.dtype
        assert again.stride() == x.stride()
        assert torch.equal(again.float(), first)


def test_masks_of_bits_are_philoxs() -> None:
    """One bit for each feature, the lowest of the first word first: written down once, the same on every device."""
    words = [int(word) for word in np.random.Philox(key=6).random_raw(2)]
    expected = [2.0 * (words[i // 64] >> i % 64 & 1) for i in range(3 * 5 * 5)]
    assert dropped([6], torch.ones(1, 3, 5, 5)).flatten().tolist() == expected
    assert words[0] == 12638285657034203956


def test_bits_make_no_other_probability() -> None:
    module = SeededDropout(0.25)
    set_dropout_seeds(module, torch.tensor([1]), host_bits=True)
    with pytest.raises(RuntimeError, match=r"needs a probability of 0\.5, got 0\.25"):
        module(ONES[:1])


@pytest.mark.parametrize("host_bits", [False, True])
def test_half_is_dropped_and_the_rest_doubled(host_bits: bool) -> None:
    out = dropped([5, 6, 7], ONES, host_bits)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert 0.45 < (out == 0).float().mean() < 0.55


def test_the_largest_seed_is_taken() -> None:
    assert dropped([2**63 - 1], ONES[:1]).shape == (1, 16, 8, 8)


def test_training_without_seeds_is_an_error() -> None:
    module = SeededDropout(0.5)
    with pytest.raises(RuntimeError, match="set_dropout_seeds"):
        module(ONES)
    set_dropout_seeds(module, torch.tensor([1, 2, 3]))
    module(ONES)
    set_dropout_seeds(module, None)
    with pytest.raises(RuntimeError, match="set_dropout_seeds"):
        module(ONES)


def test_a_wrong_number_of_seeds_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="2 dropout seeds were set for 3 examples"):
        dropped([1, 2], ONES)


def test_an_empty_batch_needs_no_mask() -> None:
    x = torch.ones(0, 4, 2, 2, requires_grad=True)
    dropped([], x).sum().backward()
    assert x.grad is not None


def test_it_is_off_in_evaluation_and_at_probability_zero() -> None:
    module = SeededDropout(0.5)
    assert module.eval()(ONES) is ONES
    module.train().p = 0.0
    assert module(ONES) is ONES


def test_the_global_generator_stays_where_it_is() -> None:
    before = torch.get_rng_state()
    dropped([5, 6, 7], ONES)
    assert torch.equal(before, torch.get_rng_state())
