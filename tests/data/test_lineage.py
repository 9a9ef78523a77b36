"""A run that was made longer or given more data: every example is still used as before, and every pair once in a pass."""

from __future__ import annotations

import functools
import json
import random

import pytest

from raymat.data.lineage import DatasetSpan, Lineage, Steps
from raymat.data.sample_order import SampleOrder, _permutation
from raymat.errors import DataError
from tests.support import datakit

make_order = functools.partial(datakit.make_order, total_examples=1000)


def grown(pairs: int = 15, **changed: object) -> SampleOrder:
    """10 pairs for two passes, then 15."""
    return make_order(
        pairs=pairs,
        backgrounds=9,
        lineage=Lineage(spans=(DatasetSpan(20, 10, 7, "old"),)),
        **changed,
    )


def triples(order: SampleOrder, first: int, end: int) -> list[tuple[int, int, int]]:
    return [(e.number, e.pair, e.background) for e in order.examples(range(first, end))]


def test_examples_before_the_growth_are_what_they_were() -> None:
    assert triples(grown(), 0, 20) == triples(make_order(), 0, 20)
    assert triples(grown(), 0, 12) == [
        (0, 4, 2), (1, 9, 3), (2, 5, 2), (3, 3, 5), (4, 0, 4), (5, 2, 3),
        (6, 7, 6), (7, 1, 0), (8, 6, 0), (9, 8, 1), (10, 9, 3), (11, 0, 6),
    ]  # fmt: skip


def test_each_pass_after_the_growth_has_every_old_and_new_pair_once() -> None:
    order = grown()
    for first in (20, 35, 50, 20 + 15 * 10**6):
        pairs = [pair for _, pair, _ in triples(order, first, first + 15)]
        assert sorted(pairs) == list(range(15))
    assert {background for _, _, background in triples(order, 20, 500)} == set(range(9))


def test_passes_are_numbered_on_so_that_none_has_the_order_of_another() -> None:
    # The third pass of 15 pairs has the order that the third pass of a run of 15 pairs from the start has.
    always = make_order(pairs=15)
    assert [p for _, p, _ in triples(grown(), 20, 35)] == [p for _, p, _ in triples(always, 30, 45)]


def test_a_step_across_the_growth_has_the_last_old_and_the_first_new_examples() -> None:
    order = grown(batch_size=8)
    assert order.step_numbers(2) == range(16, 24)
    assert [order.counts(n) for n in order.step_numbers(2)] == [(10, 7)] * 4 + [(15, 9)] * 4


def test_an_era_of_no_pass_is_no_part_of_the_order() -> None:
    twice = Lineage(spans=(DatasetSpan(20, 10, 7, "a"), DatasetSpan(20, 12, 7, "b")))
    assert triples(make_order(pairs=15, backgrounds=9, lineage=twice), 0, 200) == triples(
        grown(), 0, 200
    )
    at_once = Lineage(spans=(DatasetSpan(0, 10, 7, "a"),))
    assert triples(make_order(lineage=at_once), 0, 50) == triples(make_order(), 0, 50)
    assert make_order(lineage=at_once, pairs=12).first_pairs == 10


def test_starting_after_many_growths_costs_one_permutation() -> None:
    spans = tuple(DatasetSpan(100 * (i + 1), 100, 5, str(i)) for i in range(50))
    order = make_order(pairs=1000, lineage=Lineage(spans=spans), total_examples=10**12)
    for start in (5000, 5000 + 10**9 * 1000):
        _permutation.cache_clear()
        order.examples(range(start, start + 100))
        assert _permutation.cache_info().misses == 1


def test_a_run_that_ended_in_a_smaller_batch_goes_on_from_there() -> None:
    order = make_order(total_examples=23, lineage=Lineage(ends=(6, 14)))
    assert [order.step_numbers(step) for step in range(order.total_steps)] == [
        range(4), range(4, 6),
        range(6, 10), range(10, 14),
        range(14, 18), range(18, 22), range(22, 23),
    ]  # fmt: skip


def test_an_end_at_a_whole_batch_changes_no_step() -> None:
    plain, ended = (
        make_order(total_examples=50),
        make_order(total_examples=50, lineage=Lineage(ends=(8, 24))),
    )
    for step in range(plain.total_steps):
        assert ended.step_numbers(step) == plain.step_numbers(step)


@pytest.mark.parametrize("seed", range(50))
def test_steps_cover_any_run_once_whatever_its_ends(seed: int) -> None:
    draws = random.Random(seed)
    batch = draws.randint(1, 9)
    ends = tuple(sorted(draws.sample(range(1, 100), draws.randint(0, 5))))
    total = draws.randint(1, 150)
    order = make_order(batch_size=batch, total_examples=total, lineage=Lineage(ends=ends))
    steps = [order.step_numbers(step) for step in range(order.total_steps)]
    assert [n for numbers in steps for n in numbers] == list(range(total))
    assert all(0 < len(numbers) <= batch for numbers in steps)
    # A smaller batch stands only where the run ended.
    assert {s.stop for s in steps if len(s) < batch} <= {*ends, total}
    assert {end for end in ends if end <= total} <= {s.stop for s in steps}
    counted = Steps(batch, ends)
    for step, numbers in enumerate(steps):
        assert counted.count(numbers.stop) == step + 1
        assert counted.examples(step) == numbers.start


@pytest.mark.parametrize("seed", range(50))
def test_any_history_of_growths_uses_every_pair_once_a_pass(seed: int) -> None:
    draws = random.Random(seed)
    spans: list[DatasetSpan] = []
    end, pairs = 0, draws.randint(1, 9)
    expected: list[list[int]] = []
    for number in range(draws.randint(0, 4)):
        passes = draws.randint(0, 3)
        end += passes * pairs
        spans.append(DatasetSpan(end, pairs, draws.randint(1, 5), str(number)))
        expected += [list(range(pairs))] * passes
        pairs += draws.randint(1, 5)
    order = make_order(pairs=pairs, lineage=Lineage(spans=tuple(spans)))
    found, begin = [], 0
    for whole in (*expected, list(range(pairs)), list(range(pairs))):
        found.append([e.pair for e in order.examples(range(begin, begin + len(whole)))])
        begin += len(whole)
    assert [sorted(each) for each in found] == [*expected, *[list(range(pairs))] * 2]
    orders = [tuple(each) for each in found if len(each) > 5]
    assert len(set(orders)) == len(orders)


def test_a_past_survives_json_and_a_run_without_one_has_none() -> None:
    lineage = Lineage(spans=(DatasetSpan(20, 10, 7, "old"),), ends=(6, 14), valid_since=3)
    assert Lineage.from_dict(json.loads(json.dumps(lineage.to_dict()))) == lineage
    assert Lineage.from_dict(None) == Lineage()


STORED = Lineage(spans=(DatasetSpan(20, 10, 7, "old"),), ends=(6, 14), valid_since=3).to_dict()


def test_fields_of_a_lineage_that_a_later_version_adds_are_passed_over() -> None:
    later = STORED | {"eras": [STORED["eras"][0] | {"recipe": 2}], "why": "more data"}
    assert Lineage.from_dict(later) == Lineage.from_dict(STORED)


@pytest.mark.parametrize(
    "broken",
    [
        {"ends": [6, "14"]},
        {"ends": 6},
        {"valid_since": None},
        {"eras": [{"end": 20, "pairs": 10, "backgrounds": 7}]},
        {"eras": [{"end": 20.5, "pairs": 10, "backgrounds": 7, "listing": "old"}]},
        {"eras": [{"end": 20, "pairs": 10, "backgrounds": 7, "listing": 3}]},
        {"eras": ["old"]},
    ],
)
def test_a_lineage_with_values_of_other_types_is_damaged(broken: dict[str, object]) -> None:
    with pytest.raises(DataError, match="the run's lineage is damaged"):
        Lineage.from_dict(STORED | broken)
    with pytest.raises(DataError, match="the run's lineage is damaged"):
        Lineage.from_dict({})


def test_the_listings_of_a_stretch_are_those_that_it_used() -> None:
    lineage = Lineage(
        spans=(
            DatasetSpan(20, 10, 7, "a"),
            DatasetSpan(20, 12, 7, "b"),
            DatasetSpan(44, 12, 7, "c"),
        )
    )
    assert lineage.listings(20, "d") == [(0, "a")]
    assert lineage.listings(21, "d") == [(0, "a"), (20, "c")]
    assert lineage.listings(45, "d") == [(0, "a"), (20, "c"), (44, "d")]
    assert Lineage().listings(5, "d") == [(0, "d")]
