"""Each photometric operation against Pillow, colorsys, plain numpy or numbers worked out by hand."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from raymat.data import photometric as op

LEVEL = 1 / 255
"""One step of the 8-bit pictures that Pillow works in."""


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    """uint8 (h, w, 3): smooth colours with noise on top, all of 0..255 used."""
    generator = np.random.Generator(np.random.Philox(seed))
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / (5 + c)) * np.cos(y / (7 - c)) for c in range(3)], axis=-1)
    noisy = 127.5 + 110 * waves + generator.normal(0, 30, (height, width, 3))
    return noisy.clip(0, 255).round().astype(np.uint8)


def planar(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).double() / 255


def pixels(x: Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).numpy()


def row(*values: float) -> Tensor:
    return torch.tensor([[values]], dtype=torch.float64)


@pytest.mark.parametrize("radius", [1, 2, 5, 0.5, 1.25, 2.75])
def test_box_blur_is_pillows(radius: float) -> None:
    image = picture()
    expected = np.asarray(Image.fromarray(image).filter(ImageFilter.BoxBlur(radius))) / 255
    found = pixels(op.box_blur(planar(image), radius))
    # Pillow rounds to 8 bits after each direction.
    assert np.abs(found - expected).max() < 1.01 * LEVEL
    assert np.abs(found - expected).mean() < 0.35 * LEVEL


def test_a_fractional_box_weighs_its_ends() -> None:
    found = op.box_blur(row(0, 0, 0, 0, 1, 0, 0, 0, 0), 1.5)
    assert found.flatten().tolist() == [0, 0, 0.125, 0.25, 0.25, 0.25, 0.125, 0, 0]


def test_a_box_repeats_the_edge() -> None:
    assert op.box_blur(row(1, 0, 0, 0), 1).flatten().tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])


def test_a_box_may_be_larger_than_the_picture() -> None:
    found = op.box_blur(row(0, 0.25, 1), 9).flatten().tolist()
    # 19 pixels around the first one: itself and nine before are 0, then 0.25, then eight times 1.
    assert found == pytest.approx([8.25 / 19, 9.25 / 19, 10.25 / 19])


def test_a_box_of_radius_nought_is_the_identity() -> None:
    x = planar(picture())
    assert torch.equal(op.box_blur(x, 0), x)


def test_sharpen_is_pillows_away_from_the_edge() -> None:
    image = picture()
    expected = np.asarray(Image.fromarray(image).filter(ImageFilter.SHARPEN)) / 255
    found = pixels(op.sharpen(planar(image)))
    assert np.abs(found - expected)[1:-1, 1:-1].max() < 0.51 * LEVEL


def test_sharpen_of_a_dot_is_its_kernel() -> None:
    x = torch.full((1, 5, 5), 0.5, dtype=torch.float64)
    x[0, 2, 2] = 0.6
    # A tenth more is spread as 32/16 at the centre and -2/16 around it.
    assert op.sharpen(x)[0, 2].tolist() == pytest.approx([0.5, 0.4875, 0.7, 0.4875, 0.5])


def test_at_half_scale_sharpening_reaches_half_as_far() -> None:
    x = torch.full((1, 1, 5), 0.5, dtype=torch.float64)
    x[0, 0, 2] = 0.6
    # Box mean of radius 1/2: a half of the pixel, a quarter of each neighbour.
    wanted = [0.5, 0.5 - 1.125 * 0.025, 0.6 + 1.125 * 0.05, 0.5 - 1.125 * 0.025, 0.5]
    assert op.sharpen(x, 0.5)[0, 0].tolist() == pytest.approx(wanted)


def test_grey_is_the_weighted_sum() -> None:
    x = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64).reshape(3, 1, 1)
    assert op.grey(x).item() == pytest.approx(0.2989 * 0.5 + 0.587 * 0.25 + 0.114)


def test_brightness_multiplies_and_clamps() -> None:
    found = op.brightness_(row(0, 0.5, 0.9), 1.2)
    assert found.flatten().tolist() == pytest.approx([0, 0.6, 1])


def test_contrast_blends_with_the_mean_grey() -> None:
    x = torch.tensor([[0.2, 0.6], [0.2, 0.6], [0.2, 0.6]], dtype=torch.float64).reshape(3, 1, 2)
    # The weights of grey sum to 0.9999: mean grey is 0.39996.
    low, high = 0.2 * 1.1 - 0.1 * 0.39996, 0.6 * 1.1 - 0.1 * 0.39996
    assert op.contrast_(x, 1.1)[0].flatten().tolist() == pytest.approx([low, high])


def test_saturation_nought_is_grey_and_one_is_the_picture() -> None:
    x = planar(picture())
    assert torch.allclose(op.saturation_(x.clone(), 0), op.grey(x).expand_as(x), atol=1e-12)
    assert torch.allclose(op.saturation_(x.clone(), 1), x, atol=1e-12)


@pytest.mark.parametrize("factor", [0.82, 1.15])
@pytest.mark.parametrize(
    ("adjust", "enhancer"),
    [
        (op.brightness_, ImageEnhance.Brightness),
        (op.contrast_, ImageEnhance.Contrast),
        (op.saturation_, ImageEnhance.Color),
    ],
)
def test_jitter_is_near_what_pillow_does(adjust, enhancer, factor: float) -> None:
    image = picture()
    expected = np.asarray(enhancer(Image.fromarray(image)).enhance(factor)) / 255
    found = pixels(adjust(planar(image), factor))
    # Pillow's grey and its mean are whole numbers, and results are cut off or rounded.
    assert np.abs(found - expected).max() < 1.6 * LEVEL


@pytest.mark.parametrize("turns", [-0.5, -0.1, -0.05, 0.0, 0.03, 0.1, 0.4, 0.5])
def test_hue_shifts_as_in_hsv(turns: float) -> None:
    corners = [[r, g, b] for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)]
    image = np.concatenate([picture(12, 27), np.array([corners], dtype=np.uint8)])
    expected = np.empty(image.shape)
    for place in np.ndindex(*image.shape[:2]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        expected[place] = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
    found = pixels(op.hue_(planar(image), turns))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_hue_by_a_third_takes_red_to_green_to_blue() -> None:
    red = torch.tensor([0.9, 0.1, 0.1], dtype=torch.float64).reshape(3, 1, 1)
    assert op.hue_(red.clone(), 1 / 3).flatten().tolist() == pytest.approx([0.1, 0.9, 0.1])
    assert op.hue_(red.clone(), -1 / 3).flatten().tolist() == pytest.approx([0.1, 0.1, 0.9])


def test_jitter_applies_its_four_steps_in_its_order() -> None:
    x = planar(picture())
    parameters = op.Jitter(("hue", "saturation", "contrast", "brightness"), 1.1, 0.9, 1.15, 0.05)
    expected = op.saturation_(op.hue_(x.clone(), 0.05), 1.15)
    expected = op.brightness_(op.contrast_(expected, 0.9), 1.1)
    assert torch.equal(op.jitter_(x.clone(), parameters), expected)
    other = op.Jitter(("brightness", "contrast", "saturation", "hue"), 1.1, 0.9, 1.15, 0.05)
    assert not torch.equal(op.jitter_(x.clone(), other), expected)


COLOURS = [(0.2, 0.5, 0.7), (0.05, 0.04, 0.06), (0.9, 0.3, 0.85)]
WORKED: list[tuple[op.JitterStep, float, list[list[float]]]] = [
    ("brightness", 1.10, [[0.3, 0.6, 0.8], [0.15, 0.14, 0.16], [1, 0.4, 0.95]]),
    ("brightness", 0.85, [[0.05, 0.35, 0.55], [0, 0, 0], [0.75, 0.15, 0.7]]),
    ("contrast", 1.15, [[0.23, 0.575, 0.805], [0.0575, 0.046, 0.069], [1, 0.345, 0.9775]]),
    ("contrast", 0.85, [[0.17, 0.425, 0.595], [0.0425, 0.034, 0.051], [0.765, 0.255, 0.7225]]),
    ("saturation", 1.15, [[0.125, 0.47, 0.7], [0.0485, 0.037, 0.06], [0.9, 0.21, 0.8425]]),
    ("saturation", 0.85, [[0.275, 0.53, 0.7], [0.0515, 0.043, 0.06], [0.9, 0.39, 0.8575]]),
    ("hue", 0.05, [[0.2, 0.35, 0.7], [0.056, 0.04, 0.06], [0.9, 0.3, 0.67]]),
]
"""What kornia 0.4.1's ColorJitter makes of the three colours: brightness by the factor's distance from 1."""


def only(step: op.JitterStep, value: float) -> op.Jitter:
    """A jitter that does nothing but one step."""
    values = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | {step: value}
    return op.Jitter((step,), **values)


@pytest.mark.parametrize(("step", "value", "expected"), WORKED)
def test_the_plain_jitter_is_kornias(
    step: op.JitterStep, value: float, expected: list[list[float]]
) -> None:
    x = torch.tensor([COLOURS], dtype=torch.float64).permute(2, 0, 1)
    found = pixels(op.plain_jitter_(x, only(step, value)))[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def by_colorsys(image: np.ndarray, parameters: op.Jitter) -> np.ndarray:
    """The plain jitter a pixel at a time, in python's HSV."""
    found = image.astype(np.float64) / 255
    for place in np.ndindex(*image.shape[:2]):
        colour = tuple(found[place])
        for step in parameters.order:
            hue, saturation, value = colorsys.rgb_to_hsv(*colour)
            if step == "brightness":
                colour = tuple(c + parameters.brightness - 1 for c in colour)
            elif step == "contrast":
                colour = tuple(c * parameters.contrast for c in colour)
            elif step == "saturation":
                saturation = min(saturation * parameters.saturation, 1)
                colour = colorsys.hsv_to_rgb(hue, saturation, value)
            else:
                colour = colorsys.hsv_to_rgb((hue + parameters.hue) % 1, saturation, value)
            colour = tuple(min(max(c, 0), 1) for c in colour)
        found[place] = colour
    return found


@pytest.mark.parametrize(
    "order",
    [
        ("brightness", "contrast", "saturation", "hue"),
        ("hue", "saturation", "brightness", "contrast"),
        ("saturation", "brightness", "hue", "contrast"),
    ],
)
@pytest.mark.parametrize(
    "values",
    [
        (1.18, 1.18, 1.18, 0.1),
        (0.82, 0.82, 0.82, -0.1),
        (0.9, 1.15, 1.18, -0.03),
        (1, 1, 5, 0.5),
        (1, 1, 0, 0),
    ],
)
def test_the_plain_jitter_is_that_of_an_independent_hsv(
    order: tuple[op.JitterStep, ...], values: tuple[float, float, float, float]
) -> None:
    corners = [[r, g, b] for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)]
    image = np.concatenate([picture(12, 27), np.array([corners], dtype=np.uint8)])
    parameters = op.Jitter(order, *values)
    found = pixels(op.plain_jitter_(planar(image), parameters))
    np.testing.assert_allclose(found, by_colorsys(image, parameters), atol=1e-12)


@pytest.mark.parametrize("factor", [0.82, 1.18])
def test_saturation_of_hsv_is_opencvs(factor: float) -> None:
    image = picture().astype(np.float32) / 255
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = np.minimum(hsv[..., 1] * factor, 1)
    found = pixels(op.hsv_saturation_(planar(picture()).float(), factor))
    np.testing.assert_allclose(found, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), atol=1e-5)


def test_on_a_dark_picture_the_plain_jitter_changes_many_times_as_much() -> None:
    """Half the range of every figure: brightness and contrast of a blend shrink with the picture, an added one does not."""
    x = planar(picture()) * 0.1
    parameters = op.Jitter(("brightness", "contrast", "saturation", "hue"), 1.09, 1.09, 1.09, 0.05)
    plain, blended = (
        (jitter(x.clone(), parameters) - x).abs().mean().item()
        for jitter in (op.plain_jitter_, op.jitter_)
    )
    assert plain > 5 * blended


def test_a_warp_that_does_nothing_changes_nothing() -> None:
    x = planar(picture())
    assert torch.allclose(op.affine_warp(x, op.Affine(0, (0, 0))), x, atol=1e-12)


def test_a_warp_moves_by_fractions_of_the_sides_and_leaves_nothing_behind() -> None:
    x = planar(picture(40, 60))
    moved = op.affine_warp(x, op.Affine(0, (0.1, -0.05)))  # 6 to the right, 2 up
    expected = torch.zeros_like(x)
    expected[:, :38, 6:] = x[:, 2:, :54]
    assert torch.allclose(moved, expected, atol=1e-12)


def test_a_quarter_turn_is_clockwise() -> None:
    x = planar(picture(32, 32))
    turned = op.affine_warp(x, op.Affine(90, (0, 0)))
    assert torch.allclose(turned, torch.rot90(x, -1, (1, 2)), atol=1e-9)


def test_a_warp_of_an_oblong_picture_is_pillows() -> None:
    """Turn, shear, scale and shift at once, against Pillow's own bilinear transform with the matrix written out."""
    image = picture(40, 60)
    cos, sin, slant = np.cos(np.radians(5)), np.sin(np.radians(5)), np.tan(np.radians(-4))
    forward = 1.3 * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, -slant], [0, 1]])
    inverse = np.linalg.inv(forward)
    centre = np.array([30.0, 20.0])
    shift = centre - inverse @ (centre + np.array([0.1 * 60, -0.05 * 40]))
    matrix = (*inverse[0], shift[0], *inverse[1], shift[1])
    how = (Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    expected = np.asarray(Image.fromarray(image).transform((60, 40), *how)) / 255
    found = pixels(op.affine_warp(planar(image), op.Affine(5, (0.1, -0.05), 1.3, -4)))
    inside = expected.min(axis=-1) > 0  # Pillow fades differently over the last half pixel
    inside[1:-1, 1:-1] &= (
        inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    )
    inside[[0, -1]] = inside[:, [0, -1]] = False
    assert inside.mean() > 0.5
    assert np.abs(found - expected)[inside].max() < 1.01 * LEVEL


def test_noise_has_the_deviation_asked_for() -> None:
    x = torch.full((3, 100, 100), 0.5)
    noisy = op.noise_(x.clone(), 0.02, torch.Generator().manual_seed(1))
    # 30,000 samples: the deviation is known to 0.4%, the mean to 0.00012.
    assert noisy.std().item() == pytest.approx(0.02, rel=0.02)
    assert noisy.mean().item() == pytest.approx(0.5, abs=0.0006)


def test_noise_is_clamped() -> None:
    x = torch.cat((torch.zeros(1, 50, 50), torch.ones(1, 50, 50)))
    noisy = op.noise_(x, 0.03, torch.Generator().manual_seed(1))
    assert noisy.min() == 0
    assert noisy.max() == 1


def test_double_precision_sees_the_same_noise() -> None:
    x = torch.full((3, 8, 8), 0.5)
    single = op.noise_(x.clone(), 0.02, torch.Generator().manual_seed(1))
    double = op.noise_(x.double(), 0.02, torch.Generator().manual_seed(1))
    assert torch.allclose(single.double(), double, atol=1e-7)


def test_operations_without_an_underscore_leave_their_picture_alone() -> None:
    x = planar(picture())
    before = x.clone()
    op.box_blur(x, 1.5)
    op.sharpen(x)
    op.grey(x)
    op.affine_warp(x, op.Affine(3, (0.1, 0.1)))
    assert torch.equal(x, before)


def test_every_value_stays_between_0_and_1() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (3, 24, 24), generator=generator).float()
    jitter = op.Jitter(("contrast", "saturation", "hue", "brightness"), 1.15, 1.15, 1.15, 0.05)
    results = [op.box_blur(x, radius) for radius in (0.3, 1, 2.7)]
    results += [op.sharpen(x), op.affine_warp(x, op.Affine(4, (0.01, 0)))]
    results += [op.jitter_(x.clone(), jitter), op.plain_jitter_(x.clone(), jitter)]
    for result in results:
        assert result.min() >= 0
        assert result.max() <= 1
