"""Laws of alignment: a camera's small move is found within a pixel, and what cannot be aligned is left alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from raymat.inference.homography import Aligner
from tests.support.mattes import scene

SIZE = (640, 360)


MOVES = {
    "shift": np.array([[1, 0, 7.5], [0, 1, -4.25], [0, 0, 1]]),
    "turn": np.array([[0.9986, -0.0523, 12], [0.0523, 0.9986, -9], [0, 0, 1]]),
    "tilt": np.array([[1.02, 0.01, -5], [-0.008, 1.03, 3], [2e-5, -3e-5, 1]]),
}


def moved(points: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.column_stack([points, np.ones(len(points))]) @ by.T
    return np.asarray(found[:, :2] / found[:, 2:])


@pytest.mark.parametrize("move", MOVES)
def test_a_known_homography_is_found_within_a_pixel_behind_a_subject(move: str) -> None:
    background = scene()
    source = np.asarray(cv2.warpPerspective(background, MOVES[move], SIZE), np.uint8)
    source[100:360, 220:380] = (200, 150, 120)  # the subject covers a part of it
    found = Aligner().homography(source, background)
    assert found is not None
    corners = np.array([[0.0, 0], [640, 0], [640, 360], [0, 360], [320, 180]])
    assert np.abs(moved(corners, found) - moved(corners, MOVES[move])).max() < 1
    again = Aligner().homography(source, background)
    assert again is not None
    assert np.array_equal(found, again)


def test_the_aligned_background_is_what_the_camera_saw_and_the_source_beyond_its_edge() -> None:
    background = scene()
    source = np.asarray(cv2.warpPerspective(background, MOVES["shift"], SIZE), np.uint8)
    aligned = Aligner().align(source, background)
    assert aligned is not None
    assert aligned.shape == source.shape
    difference = np.abs(aligned.astype(int) - source)
    assert difference.mean() < 2
    assert np.abs(background.astype(int) - source).mean() > 10
    assert (difference[:, :7] == 0).all()  # beyond the background's left edge


def test_another_size_is_brought_to_the_sources() -> None:
    background = scene()
    source = cv2.resize(background, (320, 180), interpolation=cv2.INTER_AREA)
    aligned = Aligner().align(np.asarray(source, np.uint8), background)
    assert aligned is not None
    assert aligned.shape == (180, 320, 3)
    assert np.abs(aligned.astype(int) - source)[2:-2, 2:-2].mean() < 8


@pytest.mark.parametrize("what", ["another scene", "blank", "mirrored"])
def test_what_has_too_little_in_common_is_not_aligned(what: str) -> None:
    background = scene()
    source = {
        "another scene": scene(1),
        "blank": np.full_like(background, 90),
        "mirrored": np.ascontiguousarray(background[:, ::-1]),
    }[what]
    assert Aligner().align(source, background) is None


def test_tiny_pictures_are_not_aligned() -> None:
    tiny = np.zeros((1, 1, 3), np.uint8)
    assert Aligner().align(tiny, tiny) is None
