"""Procedural pictures: the same everywhere, the same at every size, and fit to learn matting from."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from functools import cache

import cv2
import numpy as np
import pytest

from raymat.data.synthetic.pictures import synthetic_background, synthetic_pair

DIGEST = """
import hashlib, sys
import cv2
from raymat.data.synthetic.pictures import synthetic_background, synthetic_pair
cv2.setNumThreads(int(sys.argv[1]))
digest = hashlib.sha256()
for index in range(6):
    for pixels in (*synthetic_pair(3, index, 160), synthetic_background(3, index, (160, 90))):
        digest.update(pixels.tobytes())
print(digest.hexdigest())
"""


def digest_in_another_process(threads: int) -> str:
    command = [sys.executable, "-c", DIGEST, str(threads)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_pictures_are_the_same_in_every_process_with_any_number_of_threads() -> None:
    digest = hashlib.sha256()
    for index in range(6):
        pair = synthetic_pair(3, index, 160)
        for pixels in (*pair, synthetic_background(3, index, (160, 90))):
            digest.update(pixels.tobytes())
    assert digest_in_another_process(1) == digest.hexdigest()
    assert digest_in_another_process(4) == digest.hexdigest()


def test_no_global_generator_is_used() -> None:
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first = synthetic_pair(0, 0, 32)
    assert np.random.random() == expected  # noqa: NPY002
    assert np.array_equal(synthetic_pair(0, 0, 32)[0], first[0])


def test_seed_and_index_are_not_added() -> None:
    assert not np.array_equal(synthetic_pair(0, 1, 48)[1], synthetic_pair(1, 0, 48)[1])
    assert not np.array_equal(synthetic_pair(0, 1, 48)[1], synthetic_pair(0, 0, 48)[1])
    assert not np.array_equal(synthetic_background(0, 1, 48), synthetic_background(1, 0, 48))


@pytest.mark.parametrize("size", [1, 7, 64, (96, 54), (50, 91)])
def test_shapes_and_types(size: int | tuple[int, int]) -> None:
    width, height = size if isinstance(size, tuple) else (size, size)
    fgr, pha = synthetic_pair(0, 4, size)
    bgr = synthetic_background(0, 4, size)
    assert fgr.shape == bgr.shape == (height, width, 3)
    assert pha.shape == (height, width)
    for pixels in (fgr, pha, bgr):
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous


def test_a_picture_needs_a_pixel() -> None:
    with pytest.raises(ValueError, match="at least one pixel, got 0 x 4"):
        synthetic_pair(0, 0, (0, 4))


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA).astype(float)


def test_another_size_is_the_same_picture_at_another_resolution() -> None:
    for index in range(8):
        large = (*synthetic_pair(0, index, 320), synthetic_background(0, index, 320))
        small = (*synthetic_pair(0, index, 80), synthetic_background(0, index, 80))
        other = (*synthetic_pair(0, index + 1, 80), synthetic_background(0, index + 1, 80))
        for a, b, c in zip(large, small, other, strict=True):
            # In levels of 255: an edge lies up to half a pixel of the smaller picture further out.
            assert np.abs(shrunk(a, 40) - shrunk(b, 40)).mean() < 8, index
            assert np.abs(shrunk(a, 40) - shrunk(c, 40)).mean() > 12, index


@cache
def all_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    return [synthetic_pair(0, index, 128) for index in range(40)]


@cache
def all_backgrounds() -> list[np.ndarray]:
    return [synthetic_background(0, index, 128) for index in range(40)]


def test_every_alpha_has_foreground_background_and_something_between() -> None:
    for _, pha in all_pairs():
        assert 0.02 < (pha == 255).mean() < 0.7
        assert (pha == 0).mean() > 0.2
        assert 0.005 < ((pha > 0) & (pha < 255)).mean() < 0.4


def test_edges_are_soft_here_and_hard_there() -> None:
    soft = [((pha > 12) & (pha < 243)).mean() for _, pha in all_pairs()]
    assert max(soft) > 3 * min(soft)


def test_some_foregrounds_are_translucent() -> None:
    """A region, not just an edge: what is left of the half-transparent after an opening by 5 x 5 pixels."""
    found = 0
    for _, pha in all_pairs():
        half = ((pha > 40) & (pha < 215)).astype(np.uint8)
        found += bool(cv2.morphologyEx(half, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8)).sum() > 50)
    assert 4 <= found <= 30


def test_hair_is_thin_and_half_transparent() -> None:
    """At 512 pixels, strands are what an opening by 5 x 5 pixels takes away."""
    shares = []
    for index in range(10):
        pha = synthetic_pair(0, index, 512)[1]
        opened = cv2.morphologyEx(pha, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
        shares.append((pha.astype(int) - opened > 20).mean())
    assert np.median(shares) > 0.003
    assert max(shares) < 0.1


def test_foregrounds_have_colours_where_the_alpha_is_nought() -> None:
    for fgr, pha in all_pairs():
        outside = fgr[pha == 0]
        assert outside.max(axis=-1).mean() > 25
        assert outside.std() > 3


def saturation(pixels: np.ndarray) -> float:
    high, low = pixels.max(axis=-1).astype(float), pixels.min(axis=-1).astype(float)
    return float(((high - low) / np.maximum(high, 1)).mean())


def test_foregrounds_differ_from_backgrounds() -> None:
    inside = [saturation(fgr[pha == 255]) for fgr, pha in all_pairs()]
    behind = [saturation(bgr) for bgr in all_backgrounds()]
    assert np.mean(inside) > 2 * np.mean(behind)
    pairs = zip(all_pairs(), all_backgrounds(), strict=True)
    apart = [np.abs(f.astype(float) - b)[p == 255].mean() for (f, p), b in pairs]
    assert np.median(apart) > 40


def test_backgrounds_have_edges_and_shades() -> None:
    for bgr in all_backgrounds():
        grey = bgr.astype(float).mean(axis=-1)
        assert grey.std() > 8
        assert np.abs(np.diff(grey, axis=1)).max() > 15


PINNED = [
    [[0, 70, 28], [20, 215, 51], [110, 255, 78]],
    [[50, 47, 52], [53, 91, 72], [65, 89, 99]],
    [[123, 108, 76], [79, 81, 78], [78, 130, 91]],
]
"""Alpha, red of the foreground, blue of the background."""


def test_the_pictures_of_one_key_never_change() -> None:
    """Means over a 3 x 3 grid, to a level: another OpenCV may round otherwise, another picture is far off."""
    fgr, pha = synthetic_pair(7, 11, 96)
    bgr = synthetic_background(7, 11, 96)
    found = [shrunk(x, 3).round().tolist() for x in (pha, fgr[..., 0], bgr[..., 2])]
    np.testing.assert_allclose(found, PINNED, atol=1.01)
