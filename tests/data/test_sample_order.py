"""The order of samples is a pure function of the seed: the same for any number of workers, wherever a run starts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from raymat.config.values import Range
from raymat.data.sample_order import (
    Cursor,
    Example,
    SampleOrder,
    _permutation,
    digest_lanes,
    digest_text,
)
from raymat.distributed.world import World
from raymat.errors import CheckpointError
from tests.support.datakit import make_order


def pass_of(order: SampleOrder, epoch: int) -> list[int]:
    numbers = range(epoch * order.pairs, (epoch + 1) * order.pairs)
    return [example.pair for example in order.examples(numbers)]


def test_the_order_of_one_seed_never_changes() -> None:
    order = make_order(valid_pairs=5, valid_backgrounds=3, valid_examples=4)
    triples = [(e.number, e.pair, e.background) for e in order.examples(range(12))]
    assert triples == [
        (0, 4, 2), (1, 9, 3), (2, 5, 2), (3, 3, 5), (4, 0, 4), (5, 2, 3),
        (6, 7, 6), (7, 1, 0), (8, 6, 0), (9, 8, 1), (10, 9, 3), (11, 0, 6),
    ]  # fmt: skip
    assert order.examples([10**9]) == [Example(10**9, 8, 6)]
    assert [order.crop_size(step) for step in range(4)] == [
        (436, 272),
        (456, 412),
        (468, 344),
        (280, 280),
    ]
    assert order.valid_examples_list() == [
        Example(0, 0, 0),
        Example(1, 1, 0),
        Example(2, 2, 2),
        Example(3, 3, 0),
    ]


@pytest.mark.parametrize("pairs", [1, 2, 7, 1000])
def test_every_pass_has_every_pair_exactly_once(pairs: int) -> None:
    order = make_order(pairs=pairs)
    for epoch in (0, 1, 2, 10**6):
        assert sorted(pass_of(order, epoch)) == list(range(pairs))


def test_no_two_passes_and_no_two_seeds_have_the_same_order() -> None:
    orders = {
        tuple(pass_of(make_order(seed=seed, pairs=50), epoch))
        for seed in range(40, 50)
        for epoch in range(20)
    }
    assert len(orders) == 200


def test_seed_42_pass_1_is_not_seed_43_pass_0() -> None:
    assert pass_of(make_order(seed=42), 1) != pass_of(make_order(seed=43), 0)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
def test_resizing_the_world_changes_no_batch(size: int) -> None:
    order = make_order(batch_size=8)
    for step in range(order.total_steps):
        numbers = order.step_numbers(step)
        shares = [World(rank, size).share(len(numbers)) for rank in range(size)]
        joined = [e for s in shares for e in order.examples(numbers[s.start : s.stop])]
        assert joined == order.examples(numbers)
        total = sum(digest_lanes(order.examples(numbers[s.start : s.stop])) for s in shares)
        assert digest_text(total) == digest_text(digest_lanes(order.examples(numbers)))


def test_chunks_are_equal_parts_of_a_step_and_only_the_last_step_has_fewer() -> None:
    order = make_order(batch_size=8, accumulate=4, total_examples=21)
    four = [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert [order.chunks(step) for step in (0, 1)] == [four, four]
    assert order.chunks(2) == [range(2), range(2, 4), range(4, 5)]
    assert make_order(batch_size=8).chunks(0) == [range(8)]
    with pytest.raises(ValueError, match="3 chunks of a batch of 8"):
        make_order(batch_size=8, accumulate=3)


def test_each_chunk_is_shared_as_a_step_is() -> None:
    order = make_order(batch_size=8, accumulate=2, total_examples=13)
    assert order.shares(0, World(0, 3)) == [range(2), range(4, 6)]
    assert order.shares(0, World(2, 3)) == [range(3, 4), range(7, 8)]
    # The last step has 5 examples, in chunks of 4 and 1: two workers have none of the second.
    assert [order.shares(1, World(rank, 3))[1] for rank in range(3)] == [
        range(4, 5),
        range(5, 5),
        range(5, 5),
    ]
    for size in (1, 2, 3, 4):
        shares = [order.shares(0, World(rank, size)) for rank in range(size)]
        assert [n for chunk in (0, 1) for share in shares for n in share[chunk]] == list(range(8))


def test_steps_cover_the_run_once_and_only_the_last_is_smaller() -> None:
    order = make_order(batch_size=4, total_examples=101)
    steps = [order.step_numbers(step) for step in range(order.total_steps)]
    assert order.total_steps == 26
    assert [n for numbers in steps for n in numbers] == list(range(101))
    assert [len(numbers) for numbers in steps] == [4] * 25 + [1]
    with pytest.raises(IndexError, match="step 26 is not in a run of 26 steps"):
        order.step_numbers(26)


def test_batches_cross_the_border_of_two_passes() -> None:
    order = make_order(pairs=10, batch_size=4)
    pairs = [e.pair for step in range(5) for e in order.examples(order.step_numbers(step))]
    assert sorted(pairs[:10]) == sorted(pairs[10:]) == list(range(10))


@pytest.mark.parametrize("start", [0, 10**9])
def test_starting_anywhere_costs_one_permutation(start: int) -> None:
    _permutation.cache_clear()
    order = make_order(pairs=1000, total_examples=10**12)
    order.examples(range(start, start + 100))
    assert _permutation.cache_info().misses == 1


def test_backgrounds_are_drawn_apart_from_pairs() -> None:
    order = make_order(pairs=5, backgrounds=4)
    drawn = order.examples(range(20_000))
    counts = np.zeros((5, 4))
    for example in drawn:
        counts[example.pair, example.background] += 1
    assert counts == pytest.approx(np.full((5, 4), 1000), rel=0.15)
    other = make_order(pairs=6, backgrounds=4).examples(range(20))
    assert [e.background for e in other] == [e.background for e in drawn[:20]]


def test_crops_are_multiples_of_4_from_low_up_to_but_not_high() -> None:
    sizes = [make_order(crop=Range(256, 268)).crop_size(step) for step in range(200)]
    assert {h for h, _ in sizes} == {w for _, w in sizes} == {256, 260, 264}
    assert len(set(sizes)) == 9, "height and width are drawn apart"
    assert make_order(crop=Range(512, 512)).crop_size(3) == (512, 512)


def test_the_crop_is_the_step_s_and_not_the_share_s() -> None:
    assert make_order(batch_size=4).crop_size(5) == make_order(batch_size=8, pairs=3).crop_size(5)


def test_validation_pairs_are_spread_evenly() -> None:
    order = make_order(valid_pairs=1000, valid_backgrounds=9, valid_examples=50)
    examples = order.valid_examples_list()
    assert [e.pair for e in examples] == list(range(0, 1000, 20))
    assert [e.number for e in examples] == list(range(50))
    assert len({e.background for e in examples}) == 9
    assert make_order().valid_examples_list() == []


def test_an_order_is_small_and_survives_pickling() -> None:
    order = make_order(pairs=240_000)
    assert len(pickle.dumps(order)) < 500
    assert pickle.loads(pickle.dumps(order)) == order


@pytest.mark.parametrize(
    "wrong",
    [{"pairs": 0}, {"backgrounds": 0}, {"batch_size": 0}, {"crop": Range(254, 512)}, {"valid_examples": 1}],
)  # fmt: skip
def test_an_order_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"at least 1|multiples of 4|validation"):
        make_order(**wrong)


def test_a_digest_never_changes() -> None:
    lanes = digest_lanes([Example(0, 4, 2), Example(1, 9, 3)])
    assert lanes.tolist() == [17718599.0, 9499695.0, 29616663.0]
    assert digest_text(lanes) == "0e5d4790f42fc3ea17"


def test_digests_tell_number_pair_and_background_apart_but_not_the_order() -> None:
    one, two = Example(1, 2, 3), Example(4, 5, 6)
    assert digest_text(digest_lanes([one, two])) == digest_text(digest_lanes([two, one]))
    others = [Example(2, 1, 3), Example(1, 3, 2), Example(1, 2, 4), Example(0, 2, 3)]
    assert len({digest_text(digest_lanes([e])) for e in (one, *others)}) == 5
    assert digest_text(digest_lanes([])) == "0" * 18


def test_digest_sums_are_exact_in_float64() -> None:
    lanes = digest_lanes([Example(0, 4, 2)])
    many = np.full((1000, 3), lanes).sum(axis=0)
    assert many.tolist() == [int(lane) * 1000 for lane in lanes]


def test_a_cursor_survives_its_state_and_refuses_another_version() -> None:
    state = Cursor(1234).state_dict()
    assert state == {"version": 1, "next_example": 1234}
    assert Cursor.load_state_dict(state) == Cursor(1234)
    with pytest.raises(CheckpointError, match="expected a cursor of version 1, got 2"):
        Cursor.load_state_dict({"version": 2, "next_example": 0})
