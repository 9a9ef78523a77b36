"""Warps are drawn within the recipe's ranges and put every point of a picture where the recipe puts it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from raymat.data.decode import Pixels, shrink
from raymat.data.warp import (
    Matrix,
    Warp,
    crop_map,
    decode_scale,
    draw_background_warp,
    draw_pair_warp,
    magnification,
    warp_into,
    warp_layers_into,
)
from tests.support.datakit import photo

STILL = Warp(degrees=0, shear=0, shift_x=0, shift_y=0, zoom=1)


def at(matrix: Matrix, x: float, y: float) -> tuple[float, float]:
    u, v, one = matrix @ (x, y, 1)
    assert one == 1
    return pytest.approx(u, abs=1e-9), pytest.approx(v, abs=1e-9)


def still(**changed: float) -> Warp:
    return dataclasses.replace(STILL, **changed)


# A picture of 400 x 200 covers a frame of 100 x 100 at scale fit = max(100/400, 100/200) = 1/2.
SIZE, FRAME, WHOLE = (400, 200), 100, (100, 100)


def test_zoom_1_covers_the_frame_from_the_centre() -> None:
    matrix = crop_map(STILL, SIZE, FRAME, WHOLE)
    assert at(matrix, 200, 100) == (50, 50)
    assert at(matrix, 100, 0) == (0, 0)
    assert at(matrix, 300, 200) == (100, 100)


def test_a_portrait_picture_covers_the_frame_too() -> None:
    matrix = crop_map(STILL, (200, 400), FRAME, WHOLE)
    assert at(matrix, 0, 100) == (0, 0)
    assert at(matrix, 200, 300) == (100, 100)


def test_zoom_a_half_leaves_black_around() -> None:
    matrix = crop_map(still(zoom=0.5), SIZE, FRAME, WHOLE)
    assert at(matrix, 0, 0) == (0, 25)
    assert at(matrix, 400, 200) == (100, 75)


def test_a_small_picture_is_enlarged_about_its_centre() -> None:
    matrix = crop_map(STILL, (20, 10), FRAME, WHOLE)
    assert at(matrix, 10, 5) == (50, 50)
    assert at(matrix, 5, 0) == (0, 0)


def test_rotation_is_clockwise_on_the_screen() -> None:
    matrix = crop_map(still(degrees=90), SIZE, FRAME, WHOLE)
    assert at(matrix, 300, 100) == (50, 100)  # from the right of the centre to below it
    assert at(matrix, 200, 0) == (100, 50)  # from above it to the right


def test_shear_slants_along_x_only() -> None:
    matrix = crop_map(still(shear=45), SIZE, FRAME, WHOLE)
    assert at(matrix, 200, 100) == (50, 50)
    assert at(matrix, 250, 100) == (75, 50)
    assert at(matrix, 200, 140) == (
        30,
        70,
    )  # 40 below the centre: 40 to the left of it, at half size


def test_shear_comes_before_rotation() -> None:
    matrix = crop_map(still(shear=45, degrees=90), SIZE, FRAME, WHOLE)
    # 40 below the centre is slanted to (-40, 40), then turned to (-40, -40), then halved.
    assert at(matrix, 200, 140) == (30, 30)


def test_translation_is_of_the_picture_s_size_at_fit_whatever_the_zoom() -> None:
    matrix = crop_map(still(shift_x=0.1, shift_y=-0.05, zoom=0.5), SIZE, FRAME, WHOLE)
    assert at(matrix, 200, 100) == (50 + 0.1 * 400 / 2, 50 - 0.05 * 200 / 2)


def test_the_flip_mirrors_the_frame_after_the_translation() -> None:
    warp = still(shift_x=0.1, flip=True)
    matrix = crop_map(warp, SIZE, FRAME, WHOLE)
    assert at(matrix, 200, 100) == (30, 50)
    assert at(matrix, 220, 120) == (20, 60)


def test_the_frame_is_shrunk_to_the_longer_side_and_cropped_from_its_centre() -> None:
    matrix = crop_map(STILL, SIZE, FRAME, (40, 80))  # 100 to 80 pixels, then 20 off above and below
    assert at(matrix, 200, 100) == (40, 20)
    assert at(matrix, 100, 0) == (0, -20)
    assert at(matrix, 100, 50) == (0, 0)
    matrix = crop_map(STILL, SIZE, FRAME, (80, 40))
    assert at(matrix, 100, 0) == (-20, 0)
    assert at(matrix, 300, 200) == (60, 80)


def test_all_steps_at_once_are_the_steps_one_after_the_other() -> None:
    warp = Warp(degrees=4, shear=-3, shift_x=0.07, shift_y=-0.04, zoom=0.6, flip=True)
    x, y = 123.0 - 640 / 2, 45.0 - 360 / 2
    x -= math.tan(math.radians(-3)) * y
    a, scale = math.radians(4), 0.6 * 512 / 360
    x, y = scale * (x * math.cos(a) - y * math.sin(a)), scale * (x * math.sin(a) + y * math.cos(a))
    x, y = x + 0.07 * 640 * 512 / 360 + 256, y - 0.04 * 360 * 512 / 360 + 256
    x = 512 - x
    x, y = x * 300 / 512, y * 300 / 512 - (300 - 260) / 2
    assert at(crop_map(warp, (640, 360), 512, (260, 300)), 123, 45) == (x, y)


def torchvision_affine(
    image: Image.Image, warp: Warp, fit: float, size: tuple[int, int]
) -> Image.Image:
    """`torchvision.transforms.functional.affine` of a Pillow image, from its formula for the inverse matrix."""
    angle, shear = math.radians(warp.degrees), math.radians(warp.shear)
    a, b = math.cos(angle), -math.cos(angle) * math.tan(shear) - math.sin(angle)
    c, d = math.sin(angle), -math.sin(angle) * math.tan(shear) + math.cos(angle)
    m = [value / (fit * warp.zoom) for value in (d, -b, 0, -c, a, 0)]
    cx, cy = image.width / 2, image.height / 2
    tx, ty = warp.shift_x * fit * size[0], warp.shift_y * fit * size[1]
    m[2] = m[0] * (-cx - tx) + m[1] * (-cy - ty) + cx
    m[5] = m[3] * (-cx - tx) + m[4] * (-cy - ty) + cy
    return image.transform(image.size, Image.Transform.AFFINE, m, Image.Resampling.BILINEAR)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(200, 120), (80, 140), (60, 40)])
@pytest.mark.parametrize("zoom", [0.45, 1.0, 1.6])
def test_the_frame_is_what_the_reference_s_steps_make_of_it(
    size: tuple[int, int], zoom: float, flip: bool
) -> None:
    """Pad to the frame, torchvision's affine, centre crop, flip: step by step with Pillow."""
    warp = Warp(degrees=4.3, shear=-3.7, shift_x=0.06, shift_y=-0.08, zoom=zoom, flip=flip)
    picture, side = photo(1, *size), 100
    wide, high = max(size[0], side), max(size[1], side)
    image = ImageOps.expand(
        Image.fromarray(picture), ((wide - size[0]) // 2, (high - size[1]) // 2)
    )
    image = torchvision_affine(image, warp, max(side / size[0], side / size[1]), size)
    left, top = (wide - side) // 2, (high - side) // 2
    image = image.crop((left, top, left + side, top + side))
    truth = np.asarray(ImageOps.mirror(image) if flip else image).astype(int)
    seen = apply(picture, crop_map(warp, size, side, (side, side)), (side, side)).astype(int)
    both = (truth.min(axis=2) > 0) & (seen.min(axis=2) > 0)
    assert abs(both.mean() - (truth.max(axis=2) > 0).mean()) < 0.05, "borders apart"
    assert np.abs(seen - truth)[both].mean() < 1, (
        "Pillow cuts off: 0.5; half a pixel would be 0.9 to 7"
    )


def test_magnification_is_the_largest_stretch() -> None:
    assert magnification(crop_map(STILL, SIZE, FRAME, WHOLE)) == pytest.approx(0.5)
    assert magnification(crop_map(STILL, SIZE, FRAME, (40, 80))) == pytest.approx(0.4)
    rng = np.random.Generator(np.random.Philox(0))
    for linear in rng.normal(size=(50, 2, 2)):
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        largest = np.linalg.svd(linear, compute_uv=False)[0]
        assert magnification(matrix) == pytest.approx(largest, rel=1e-12)


@pytest.mark.parametrize(
    ("zoom", "scale"),
    [(3, 1), (2, 1), (1.01, 1), (1, 2), (0.51, 2), (0.5, 4), (0.26, 4), (0.25, 8), (0.01, 8)],
)
def test_pictures_are_decoded_no_smaller_than_they_are_needed(zoom: float, scale: int) -> None:
    assert decode_scale(crop_map(still(zoom=zoom), SIZE, FRAME, WHOLE)) == scale


def test_every_foreground_from_4k_to_512_may_be_decoded_at_a_quarter_and_background_at_a_half() -> (
    None
):
    for number in range(300):
        pair = draw_pair_warp(1, number, "base", train=True)
        assert decode_scale(crop_map(pair, (3840, 2160), 512, (508, 508))) >= 4
        background = draw_background_warp(1, number, train=True)
        assert decode_scale(crop_map(background, (3840, 2160), 512, (508, 508))) >= 2


@pytest.mark.parametrize(
    ("draw", "zoom", "flips"),
    [
        (lambda n: draw_pair_warp(1, n, "base", True), (0.4, 1.0), True),
        (lambda n: draw_pair_warp(1, n, "refine", True), (0.3, 1.0), True),
        (lambda n: draw_background_warp(1, n, True), (1.0, 2.0), True),
        (lambda n: draw_pair_warp(1, n, "base", False), (0.3, 1.0), False),
        (lambda n: draw_pair_warp(1, n, "refine", False), (0.3, 1.0), False),
        (lambda n: draw_background_warp(1, n, False), (1.0, 1.2), False),
    ],
)
def test_draws_fill_their_ranges(draw: object, zoom: tuple[float, float], flips: bool) -> None:
    drawn = [draw(number) for number in range(2000)]  # type: ignore[operator]
    ranges = {
        "degrees": (-5, 5),
        "shear": (-5, 5),
        "shift_x": (-0.1, 0.1),
        "shift_y": (-0.1, 0.1),
        "zoom": zoom,
    }
    columns = {name: np.array([getattr(warp, name) for warp in drawn]) for name in ranges}
    for name, (low, high) in ranges.items():
        values = columns[name]
        assert low <= values.min() < low + (high - low) / 100
        assert high - (high - low) / 100 < values.max() < high
        assert values.mean() == pytest.approx((low + high) / 2, abs=(high - low) / 40)
    assert np.abs(np.corrcoef(list(columns.values())) - np.eye(5)).max() < 0.1
    share = np.mean([warp.flip for warp in drawn])
    assert share == (pytest.approx(0.5, abs=0.05) if flips else 0)


def test_the_warp_of_one_key_never_changes() -> None:
    assert draw_pair_warp(42, 7, "base", train=True) == Warp(
        degrees=pytest.approx(1.5964242202019188),
        shear=pytest.approx(0.2651287323126317),
        shift_x=pytest.approx(-0.0379199994883537),
        shift_y=pytest.approx(0.06486645710024996),
        zoom=pytest.approx(0.996830424784138),
        flip=True,
    )
    assert draw_background_warp(42, 7, train=False).zoom == pytest.approx(1.1307637108293758)


def test_validation_and_training_and_pair_and_background_are_drawn_apart() -> None:
    angles = {
        draw_pair_warp(1, 5, "base", True).degrees,
        draw_pair_warp(1, 5, "base", False).degrees,
        draw_background_warp(1, 5, True).degrees,
        draw_background_warp(1, 5, False).degrees,
        draw_pair_warp(2, 5, "base", True).degrees,
        draw_pair_warp(1, 6, "base", True).degrees,
    }
    assert len(angles) == 6


def gradient(width: int, height: int) -> Pixels:
    """A picture whose red is 2 x and whose green is 2 y: even steps, so that no average is rounded."""
    red, green = np.meshgrid(2 * np.arange(width), 2 * np.arange(height))
    return np.stack([red, green, np.full_like(red, 255)], axis=-1).astype(np.uint8)


def apply(pixels: Pixels, matrix: Matrix, crop: tuple[int, int], scale: int = 1) -> Pixels:
    out = np.full((*crop, *pixels.shape[2:]), 77, np.uint8)
    warp_into(out, shrink(pixels, scale), matrix, scale)  # type: ignore[arg-type]
    return out


def test_the_identity_changes_no_pixel() -> None:
    picture = np.random.Generator(np.random.Philox(0)).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(
        apply(picture, crop_map(STILL, (64, 64), 64, (64, 64)), (64, 64)), picture
    )


def test_the_flip_alone_mirrors_the_pixels() -> None:
    picture = np.random.Generator(np.random.Philox(0)).integers(0, 256, (64, 64, 3), np.uint8)
    matrix = crop_map(still(flip=True), (64, 64), 64, (64, 64))
    assert np.array_equal(apply(picture, matrix, (64, 64)), picture[:, ::-1])


def test_halving_averages_the_pixels_on_either_side_of_each_new_centre() -> None:
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    matrix = crop_map(STILL, (4, 4), 4, (2, 2))
    # matrix puts 4 x 4 on 2 x 2: the new centres lie on the corners between four pixels.
    assert apply(picture, matrix, (2, 2)).tolist() == [[25, 45], [105, 125]]


def test_what_is_outside_of_the_picture_is_black() -> None:
    picture = np.full((20, 40, 3), 200, np.uint8)
    out = apply(picture, crop_map(still(zoom=0.5), (40, 20), 40, (40, 40)), (40, 40))
    assert out[:10].max() == out[30:].max() == 0
    assert out[11:29].min() == 200


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [(120, 96), (117, 91)])
def test_a_smaller_decoding_shows_the_same_places(scale: int, size: tuple[int, int]) -> None:
    picture = gradient(*size)
    warp = Warp(degrees=3, shear=-4, shift_x=0.02, shift_y=0.03, zoom=1.4, flip=True)
    matrix = crop_map(warp, size, 64, (48, 60))
    exact, seen = apply(picture, matrix, (48, 60)), apply(picture, matrix, (48, 60), scale)
    assert exact.min(axis=(0, 1))[2] == 255, "the crop lies within the picture"
    inverse = np.linalg.inv(matrix)
    columns, rows = np.meshgrid(np.arange(60) + 0.5, np.arange(48) + 0.5)
    x, y, _ = np.einsum("ij,jhw->ihw", inverse, np.stack([columns, rows, np.ones_like(rows)]))
    truth = np.stack([2 * (x - 0.5), 2 * (y - 0.5)], axis=-1)
    error = seen[..., :2] - truth
    # OpenCV 4 rounds where a pixel lies to 1/32 of the decoded one, OpenCV 5 does not.
    assert np.abs(error.mean(axis=(0, 1))).max() < 0.4, "half a pixel would be 1"
    assert np.abs(error).max() < 1


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_the_crop_is_the_bilinear_interpolation_of_the_pixels(scale: int) -> None:
    """Against a plain float64 interpolation; OpenCV 4 rounds the weights to 1/32, OpenCV 5 does not."""
    rng = np.random.Generator(np.random.Philox(1))
    picture = shrink(rng.integers(0, 256, (120, 160), np.uint8), 4)
    big = np.kron(picture, np.ones((4, 4), np.uint8))
    matrix = crop_map(Warp(5, 5, 0.01, 0.02, 1.3), (160, 120), 40, (40, 40))
    seen = apply(big, matrix, (40, 40), scale).astype(float)
    small = shrink(big, scale).astype(float)  # type: ignore[arg-type]
    columns, rows = np.meshgrid(np.arange(40) + 0.5, np.arange(40) + 0.5)
    points = np.linalg.inv(matrix) @ np.stack([columns.ravel(), rows.ravel(), np.ones(1600)])
    x, y = points[0] / scale - 0.5, points[1] / scale - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = x - left, y - top
    truth = (small[top, left] * (1 - fx) + small[top, left + 1] * fx) * (1 - fy) + (
        small[top + 1, left] * (1 - fx) + small[top + 1, left + 1] * fx
    ) * fy
    assert np.abs(seen.ravel() - truth).mean() < 1.5


def test_pixels_are_written_straight_into_the_batch() -> None:
    batch = np.full((3, 20, 24, 3), 77, np.uint8)
    warp_into(batch[1], gradient(40, 30), crop_map(STILL, (40, 30), 24, (20, 24)))
    assert np.all(batch[[0, 2]] == 77)
    assert batch[1].max() == 255


@pytest.mark.parametrize("padded", [False, True])
def test_a_pair_warped_together_is_equal_to_each_warped_alone(padded: bool) -> None:
    rng = np.random.Generator(np.random.Philox(2))
    for number in range(40):
        width, height = (int(side) for side in rng.integers(2, 200, 2))
        crop = (int(rng.integers(1, 90)), int(rng.integers(1, 90)))
        fgr, pha = (rng.integers(0, 256, (height, width, n), np.uint8) for n in (3 + padded, 1))
        matrix = crop_map(draw_pair_warp(7, number, "base", train=True), (width, height), 64, crop)
        together = [np.full((*crop, 3), 77, np.uint8), np.full(crop, 77, np.uint8)]
        alone = [np.empty_like(out) for out in together]
        warp_into(alone[0], np.ascontiguousarray(fgr[..., :3]), matrix)
        warp_into(alone[1], pha[..., 0], matrix)
        warp_layers_into(together, [fgr, pha[..., 0]], matrix)
        assert [out.tolist() for out in together] == [out.tolist() for out in alone]
