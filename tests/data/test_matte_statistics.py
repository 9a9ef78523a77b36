"""What the numbers of a matte make likely is said by its kind; ordinary mattes, of any size, are passed in silence."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest

from raymat.data.decode import Pixels
from raymat.data.matte_statistics import LIKELY, MatteStatistics, judge
from raymat.data.synthetic.pictures import synthetic_pair
from tests.support.datakit import disc, photo


@cache
def pairs() -> list[tuple[Pixels, Pixels]]:
    return [synthetic_pair(4, i, (320, 240)) for i in range(40)]


def judged(matte: Pixels, foreground: Pixels | None = None, depth: int = 8) -> tuple[str, ...]:
    return judge(MatteStatistics.of(matte, foreground, depth))


def multiplied(foreground: Pixels, matte: Pixels) -> Pixels:
    return (foreground.astype(int) * matte[..., None] // 255).astype(np.uint8)


def test_ordinary_mattes_are_passed_in_silence() -> None:
    assert [judged(matte, foreground) for foreground, matte in pairs()] == [()] * 40
    assert judged(disc(3), photo(3)) == ()


def test_an_inverted_matte_is_told_by_its_sides() -> None:
    assert [judged(255 - matte) for _, matte in pairs()] == [("inverted",)] * 40


def test_a_mask_without_soft_edges_is_told_from_a_matte() -> None:
    masks = [np.where(matte > 127, 255, 0).astype(np.uint8) for _, matte in pairs()]
    assert [judged(mask) for mask in masks] == [("hard",)] * 40
    assert judged(255 - masks[0]) == ("inverted", "hard")


def test_a_trimap_and_a_mask_of_half_strength_are_told_from_a_matte() -> None:
    mattes = [matte for _, matte in pairs()]
    trimaps = [np.where(m > 230, 255, np.where(m > 9, 128, 0)).astype(np.uint8) for m in mattes]
    halves = [np.where(matte > 127, 128, 0).astype(np.uint8) for matte in mattes]
    assert all("flat" in judged(found) for found in halves)
    assert sum("flat" in judged(found) for found in trimaps) >= 38  # those with hair at least


def test_a_photograph_is_soft_everywhere() -> None:
    greys = [cv2.cvtColor(photo(seed, 320, 240), cv2.COLOR_RGB2GRAY) for seed in range(40)]
    assert [judged(np.asarray(grey)) for grey in greys] == [("photograph",)] * 40


def test_a_premultiplied_foreground_is_nowhere_brighter_than_its_alpha() -> None:
    found = [judged(matte, multiplied(*pair)) for pair in pairs() for matte in pair[1:]]
    assert found.count(("premultiplied",)) >= 38  # a dark subject does not show it
    assert set(found) <= {("premultiplied",), ()}
    cut_out = [np.where(matte[..., None] > 0, fgr, 0).astype(np.uint8) for fgr, matte in pairs()]
    assert {judged(matte, cut) for cut, (_, matte) in zip(cut_out, pairs(), strict=True)} == {()}


def test_a_premultiplied_foreground_is_told_when_both_are_shrunk() -> None:
    foreground, matte = pairs()[0]
    smaller = [
        np.asarray(cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8)
        for p in (multiplied(foreground, matte), foreground, matte)
    ]
    found = MatteStatistics.of(matte)
    assert judge(found.beside(smaller[0], smaller[2])) == ("premultiplied",)
    assert judge(found.beside(smaller[1], smaller[2])) == ()


@pytest.mark.parametrize(
    ("matte", "depth", "kind"),
    [
        (np.zeros((240, 320)), 8, "empty"),
        (np.zeros((240, 320)), 16, "void"),
        (16 + disc(1, 320, 240) * (219 / 255), 8, "limited"),
        (np.full((240, 320), 255), 8, "full"),
        (disc(1, 320, 240) // 4, 8, "faint"),
        (disc(1, 320, 240) // 17, 8, "faint"),
        (disc(1, 320, 240) // 17, 16, "shallow"),
    ],
)
def test_values_that_are_no_whole_range_are_named(matte: Pixels, depth: int, kind: str) -> None:
    assert judged(matte.astype(np.uint8), depth=depth) == (kind,)
    assert kind in LIKELY


def test_a_matte_of_limited_range_is_told_through_a_jpeg_and_an_ordinary_one_is_not() -> None:
    for _, matte in pairs():
        for quality in (60, 95):
            limited = (16 + matte * (219 / 255)).astype(np.uint8)
            through = [
                cv2.imdecode(cv2.imencode(".jpg", m, [1, quality])[1], 0) for m in (limited, matte)
            ]
            assert "limited" in judged(np.asarray(through[0], np.uint8))
            assert "limited" not in judged(np.asarray(through[1], np.uint8))


def test_one_soft_pixel_between_the_rows_that_are_looked_at_is_not_missed() -> None:
    for value, rest in ((200, 0), (55, 255)):
        matte = np.full((480, 640), rest, np.uint8)
        matte[101, 333] = value
        assert judged(matte) == ()


@pytest.mark.parametrize("shape", [(1, 1), (1, 640), (640, 1), (2, 2), (7, 9)])
def test_small_mattes_are_judged_too(shape: tuple[int, int]) -> None:
    assert judged(np.zeros(shape, np.uint8), np.zeros((*shape, 3), np.uint8)) == ("empty",)
    assert judged(np.full(shape, 255, np.uint8)) == ("full",)


def test_the_figures_are_those_of_the_matte() -> None:
    matte = np.zeros((8, 10), np.uint8)
    matte[:, 4:] = 255
    matte[:, 3:5] = (100, 200)
    assert MatteStatistics.of(matte) == MatteStatistics(
        low=0, high=255, mean=(100 + 200 + 5 * 255) / 10, rim=pytest.approx(144.17, abs=0.01),
        soft=0.2, edge=2.0, flat=0.5, ends=0.8,
    )  # fmt: skip
