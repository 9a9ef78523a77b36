"""Laws of where a curve flattens, on curves made by hand: one point every 100 examples, every 10 steps."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest

from raymat.analysis.plateau import Point, binned, find_plateau


def curve(values: Sequence[float]) -> list[Point]:
    return [Point(10 * (i + 1), 100.0 * (i + 1), value) for i, value in enumerate(values)]


FALLS = [1.0, 0.8, 0.6, 0.4, 0.2]
FLAT = [0.2] * 10


def test_a_curve_that_falls_and_then_stays_flattens_at_the_corner() -> None:
    found = find_plateau(curve(FALLS + FLAT), window=300)
    assert found.start == 4
    assert curve(FALLS + FLAT)[4].step == 50


def test_a_single_odd_validation_neither_makes_nor_hides_a_plateau() -> None:
    for odd in (0.01, 5.0):
        values = FALLS + FLAT
        values[9] = odd
        assert find_plateau(curve(values), window=300).start == 4
        values = FALLS + FLAT
        values[-1] = odd
        assert find_plateau(curve(values), window=300).start == 4


@pytest.mark.parametrize("seed", range(30))
def test_a_noisy_plateau_is_found_within_a_window_of_its_beginning(seed: int) -> None:
    made = random.Random(seed)
    clean = [0.1 + 0.9 * math.exp(-i / 5) for i in range(100)]
    noisy = [value * made.uniform(0.97, 1.03) for value in clean]
    found = find_plateau(curve(noisy))
    assert found.window == pytest.approx(1980)
    assert found.start is not None
    # Without noise a window, 20 points, gains less than 5% from exp(-i / 5) < 0.05 / 9 on.
    assert 23 <= found.start <= 26 + 20


def test_of_two_plateaus_the_last_one_counts() -> None:
    values = FALLS + FLAT + [0.15, 0.1] + [0.1] * 8
    assert find_plateau(curve(values), window=300).start == 16


def test_a_curve_that_still_falls_has_none() -> None:
    found = find_plateau(curve([1 / math.sqrt(i) for i in range(1, 40)]))
    assert found.start is None
    assert "still improves, by 10.6% in" in found.reason
    assert "train on" in found.reason


def test_a_fall_after_a_long_plateau_is_no_plateau() -> None:
    assert find_plateau(curve(FALLS + FLAT + [0.15, 0.1, 0.05]), window=300).start is None


@pytest.mark.parametrize("values", [[0.5] * 8, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]])
def test_a_curve_that_never_falls_is_flat_from_its_first_point(values: list[float]) -> None:
    assert find_plateau(curve(values)).start == 0


@pytest.mark.parametrize("values", [[], [0.5]])
def test_a_point_is_no_curve(values: list[float]) -> None:
    found = find_plateau(curve(values))
    assert found.start is None
    assert f"too short: {len(values)} point" in found.reason


def test_a_window_longer_than_the_curve_decides_nothing() -> None:
    found = find_plateau(curve(FLAT), window=801)
    assert (found.start, found.reason) == (
        None,
        "the curve is too short: 10 points over 900 examples, the window is 801",
    )
    assert find_plateau(curve(FLAT), window=800).start == 0


def test_a_window_shorter_than_the_way_to_the_next_point_takes_its_share_of_the_gain() -> None:
    values = [1.0, 0.96, 0.96 * 0.96, 0.96**3]  # 4% each 100 examples: 1% each 25
    assert find_plateau(curve(values), window=25, threshold=0.02).start == 0
    assert find_plateau(curve(values), window=100, threshold=0.02).start is None


def test_of_a_metric_that_should_rise_the_falls_do_not_count() -> None:
    rises = [0.1, 0.4, 0.7, 0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.9]
    assert find_plateau(curve(rises), window=200, mode="max").start == 3


def test_bins_are_means_at_their_last_point() -> None:
    found = binned(curve([1.0, 3.0, 5.0, 7.0, 10.0]), 3)
    assert found == [Point(20, 200.0, 2.0), Point(40, 400.0, 6.0), Point(50, 500.0, 10.0)]
