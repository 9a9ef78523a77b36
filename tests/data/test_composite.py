"""What every worker must agree on: an example is augmented by its key alone."""

from __future__ import annotations

import collections
import math
import time
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raymat.config.sections import RECIPES, Recipe
from raymat.data.composite import Augmentation, Composed, Way, composite, usual_way
from raymat.data.compositing import photometric_draws as module
from raymat.data.compositing.fused_batch import fused_obstacle
from raymat.data.compositing.per_example import apply_
from raymat.data.compositing.photometric_draws import Noise, Photometric, Shadow, draw_photometric
from raymat.data.photometric import Affine, Jitter, box_blur
from raymat.data.rng import Draws, Stream

SAME: Jitter = Jitter(("brightness", "contrast", "saturation", "hue"), 1, 1, 1, 0)
"""A jitter that changes nothing (but for rounding)."""

SUMS_OF_RECIPE_2 = [77718.5481509091, 75282.49999194808, 78828.27513716673, 27539.483785876073]
"""Sums of src, bgr, fgr and pha over `NUMBERS`, as versions before recipe 3 had them."""

NOTHING = Photometric(None, False, SAME, None, False, SAME, None, None, None, None)
"""Parameters that change nothing."""


class Calls(TorchDispatchMode):
    """Counts the operators that torch runs, views aside."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


def images(
    n: int, height: int = 40, width: int = 56, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 fgr, pha, bgr of n examples: noise, with flat alphas of 0 and 255 in the corners."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    fgr, pha, bgr = draw(n, height, width, 3), draw(n, height, width), draw(n, height, width, 3)
    pha[:, : height // 3], pha[:, -height // 3 :] = 0, 255
    return fgr, pha, bgr


def train(pictures: tuple[Tensor, Tensor, Tensor], numbers, **options) -> Composed:
    dtype, together = options.pop("dtype", torch.float32), options.pop("together", None)
    key = {"seed": 42, "resolution": 64} | options
    way = {None: None, True: "together", False: "one by one"}[together]
    return composite(*pictures, Augmentation(numbers=numbers, **key), dtype, way)


def validated(pictures: tuple[Tensor, Tensor, Tensor]) -> Composed:
    return composite(*pictures, None)


def pick(pictures: tuple[Tensor, Tensor, Tensor], places: list[int]) -> tuple[Tensor, ...]:
    return tuple(x[places] for x in pictures)


def same(first: Composed, second: Composed) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def example(height: int = 32, width: int = 32) -> Composed:
    """One example for `apply_`: a grey ramp before another, the alpha a square in the middle."""
    ramp = torch.linspace(0.2, 0.8, width, dtype=torch.float64).expand(3, height, width)
    pha = torch.zeros(1, height, width, dtype=torch.float64)
    pha[:, height // 4 : -height // 4, width // 4 : -width // 4] = 1
    return Composed(src=torch.zeros_like(ramp).clone(), bgr=ramp.clone(), fgr=ramp.flip(2), pha=pha)


def applied(**parameters) -> Composed:
    result = example()
    apply_(result, Photometric(**{**NOTHING.__dict__, **parameters}), 1.0)
    return result


# ---- an example is the same in whatever company


NUMBERS = list(range(60, 84))


def test_these_examples_undergo_every_operation() -> None:
    drawn = [draw_photometric(42, number) for number in NUMBERS]
    for name in ("pair_blur", "bgr_blur"):
        assert any(getattr(p, name) for p in drawn), name
    for name in ("shadow", "noise", "captured_jitter", "captured_affine"):
        assert any(getattr(p, name) is not None for p in drawn), name
    assert any(p.pair_sharpen for p in drawn)
    assert any(p.bgr_sharpen for p in drawn)


@pytest.mark.parametrize(
    ("recipe", "together"), [("1", None), ("2", None), ("3", False), ("3", True)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_example_is_the_same_alone_and_in_any_partition(
    dtype: torch.dtype, recipe: Recipe, together: bool | None
) -> None:
    pictures = images(24, 20, 28)  # an odd number of vectors of 16 pixels
    options = {"dtype": dtype, "recipe": recipe, "together": together}
    whole = train(pictures, NUMBERS, **options)
    for sizes in ([1] * 24, [3] * 8, [5, 0, 7, 12], [23, 1]):
        parts, start = [], 0
        for size in sizes:
            places = list(range(start, start + size))
            numbers = [NUMBERS[i] for i in places]
            parts.append(train(pick(pictures, places), numbers, **options))
            start += size
        joined = Composed(*(torch.cat(xs) for xs in zip(*parts, strict=True)))
        assert same(joined, whole), sizes


def test_an_example_is_the_same_at_any_position() -> None:
    pictures = images(24)
    whole = train(pictures, NUMBERS)
    order = list(range(23, -1, -1))
    turned = train(pick(pictures, order), [NUMBERS[i] for i in order])
    assert same(Composed(*(x.flip(0) for x in turned)), whole)


@pytest.mark.parametrize("together", [False, True])
def test_an_example_is_the_same_with_any_number_of_threads(together: bool) -> None:
    pictures = images(2, 192, 192)  # large enough for torch to share the work out
    numbers = [66, 67]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = train(pictures, numbers, resolution=192, together=together)
        torch.set_num_threads(2)
        two = train(pictures, numbers, resolution=192, together=together)
    finally:
        torch.set_num_threads(threads)
    assert same(one, two)


def test_images_that_are_views_give_the_same() -> None:
    pictures = images(4)
    wide = tuple(torch.cat((x, x), dim=2)[:, :, : x.shape[2]] for x in pictures)
    assert not wide[0].is_contiguous()
    assert same(train(wide, range(4)), train(pictures, range(4)))


def test_the_same_key_gives_the_same_and_another_key_another() -> None:
    pictures = images(1)
    assert same(train(pictures, [7]), train(pictures, [7]))
    for other in (train(pictures, [8]), train(pictures, [7], seed=43)):
        assert not torch.equal(other.fgr, train(pictures, [7]).fgr)


def test_no_global_generator_is_used() -> None:
    before = torch.random.get_rng_state()
    train(images(8), range(60, 68))
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- what comes out


def test_values_shapes_and_types() -> None:
    found = train(images(24), NUMBERS)
    assert [tuple(x.shape) for x in found] == [(24, 3, 40, 56)] * 3 + [(24, 1, 40, 56)]
    for x in found:
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        assert x.min() >= 0
        assert x.max() <= 1


@pytest.mark.parametrize("training", [True, False])
def test_no_examples_make_an_empty_batch(training: bool) -> None:
    found = train(images(0), []) if training else validated(images(0))
    assert [tuple(x.shape) for x in found] == [(0, 3, 40, 56)] * 3 + [(0, 1, 40, 56)]


def test_double_precision_makes_the_same_pictures() -> None:
    single, double = (train(images(24), NUMBERS, dtype=t) for t in (torch.float32, torch.float64))
    for a, b in zip(single, double, strict=True):
        assert b.dtype == torch.float64
        assert (a.double() - b).abs().max() < 1e-5


def test_the_pixels_handed_in_are_not_changed() -> None:
    pictures = images(24)
    before = [x.clone() for x in pictures]
    train(pictures, NUMBERS)
    assert all(torch.equal(a, b) for a, b in zip(pictures, before, strict=True))


def test_validation_composes_and_nothing_else() -> None:
    fgr = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)
    bgr = torch.tensor([[[[0, 255, 102]]]], dtype=torch.uint8)
    pha = torch.tensor([[[51]]], dtype=torch.uint8)  # a fifth
    found = validated((fgr, pha, bgr))
    assert found.fgr.flatten().tolist() == pytest.approx([1, 0, 0.2])
    assert found.bgr.flatten().tolist() == pytest.approx([0, 1, 0.4])
    assert found.pha.item() == pytest.approx(0.2)
    assert found.src.flatten().tolist() == pytest.approx([0.2, 0.8, 0.04 + 0.32])


def test_validation_has_no_randomness() -> None:
    pictures = images(5)
    first = validated(pictures)
    assert same(validated(pictures), first)
    singles = [validated(pick(pictures, [i])) for i in range(5)]
    assert same(Composed(*(torch.cat(xs) for xs in zip(*singles, strict=True))), first)


def test_shapes_that_do_not_fit_are_refused() -> None:
    fgr, pha, bgr = images(2)
    with pytest.raises(ValueError, match=r"got \(2, 40, 56, 3\), .* and 3 numbers"):
        train((fgr, pha, bgr), [1, 2, 3])
    with pytest.raises(ValueError, match="expected fgr and bgr"):
        train((fgr, pha, bgr[:, :20]), [1, 2])


# ---- which result is used where


def test_without_parameters_the_source_is_the_composition() -> None:
    found, given = applied(), example()
    expected = given.fgr * given.pha + given.bgr * (1 - given.pha)
    assert torch.allclose(found.src, expected, atol=1e-12)
    assert torch.allclose(found.bgr, given.bgr, atol=1e-12)


def test_the_shadow_falls_on_the_source_only_and_behind_the_foreground() -> None:
    found = applied(shadow=Shadow(0.2, Affine(0, (0.125, 0)), kernel=3))
    plain = applied()
    assert torch.equal(found.bgr, plain.bgr)
    assert torch.equal(found.fgr, plain.fgr)
    darker = (plain.src - found.src)[0, 16].tolist()
    # The square lies at columns 8..23, its shadow at 12..27, blurred over three pixels.
    assert darker[:24] == pytest.approx([0] * 24)
    assert darker[24:] == pytest.approx([0.2, 0.2, 0.2, 0.4 / 3, 0.2 / 3, 0, 0, 0])


def test_a_shadow_never_makes_a_negative_colour() -> None:
    result = example()
    result.bgr.fill_(0.1)
    parameters = Photometric(**{**NOTHING.__dict__, "shadow": Shadow(0.3, Affine(0, (0.3, 0)), 3)})
    apply_(result, parameters, 1.0)
    assert result.src.min() == 0


def test_noise_is_independent_on_source_and_background() -> None:
    found, plain = applied(noise=Noise(0.01, 0.02, seed=5)), applied()
    on_src, on_bgr = found.src - plain.src, found.bgr - plain.bgr
    assert on_src.std().item() == pytest.approx(0.01, rel=0.1)  # 3,072 values each
    assert on_bgr.std().item() == pytest.approx(0.02, rel=0.1)
    both = torch.corrcoef(torch.stack((on_src.flatten(), on_bgr.flatten())))
    assert abs(both[0, 1].item()) < 0.09  # five deviations of 1 / sqrt(3,072)
    assert torch.equal(found.fgr, plain.fgr)
    assert torch.equal(found.pha, plain.pha)


@pytest.mark.parametrize(
    "parameters",
    [
        {"captured_jitter": Jitter(SAME.order, 1.1, 0.9, 1, 0.1)},
        {"captured_affine": Affine(1, (0.05, 0))},
    ],
)
def test_what_happens_to_the_captured_background_does_not_reach_the_source(parameters) -> None:
    found, plain = applied(**parameters), applied()
    assert (found.bgr - plain.bgr).abs().max() > 0.01
    for name in ("src", "fgr", "pha"):
        assert torch.equal(getattr(found, name), getattr(plain, name))


def test_foreground_and_alpha_are_blurred_together_and_jittered_apart() -> None:
    given = example()
    found = applied(pair_blur=2, fgr_jitter=Jitter(SAME.order, 0.9, 1, 1, 0))
    assert torch.allclose(found.pha, box_blur(given.pha, 2))
    assert torch.allclose(found.fgr, 0.9 * box_blur(given.fgr, 2), atol=1e-12)
    assert torch.allclose(found.bgr, applied().bgr)
    expected = found.fgr * found.pha + found.bgr * (1 - found.pha)
    assert torch.allclose(found.src, expected, atol=1e-12)


def test_the_backgrounds_own_blur_and_jitter_reach_the_source() -> None:
    given = example()
    found = applied(bgr_blur=3, bgr_jitter=Jitter(SAME.order, 0.9, 1, 1, 0))
    assert torch.allclose(found.bgr, 0.9 * box_blur(given.bgr, 3), atol=1e-12)
    assert torch.allclose(found.src[:, 0], found.bgr[:, 0], atol=1e-12)
    assert torch.equal(found.fgr, applied().fgr)


def test_the_background_is_warped_after_it_was_jittered_and_noised() -> None:
    found = applied(noise=Noise(0, 0.02, 3), captured_affine=Affine(0, (0.5, 0)))
    assert found.bgr[:, :, :16].abs().max() == 0  # no noise on what came in from outside
    unmoved = applied(noise=Noise(0, 0.02, 3))
    assert torch.allclose(found.bgr[:, :, 16:], unmoved.bgr[:, :, :16], atol=1e-12)


def test_a_shadows_kernel_scales_with_the_crop() -> None:
    half = example()
    cast = Shadow(0.2, Affine(0, (0.125, 0)), kernel=6)
    apply_(half, Photometric(**{**NOTHING.__dict__, "shadow": cast}), scale=0.5)
    whole = applied(shadow=Shadow(0.2, Affine(0, (0.125, 0)), kernel=3))
    assert torch.equal(half.src, whole.src)


def test_the_background_is_jittered_after_it_was_noised() -> None:
    halved = Jitter(SAME.order, 1, 0.5, 1, 0)
    quiet = applied(captured_jitter=halved)
    noisy = applied(captured_jitter=halved, noise=Noise(0, 0.02, 3))
    assert (noisy.bgr - quiet.bgr).std().item() == pytest.approx(0.01, rel=0.1)


def test_the_first_recipe_differs_in_the_captured_background_alone() -> None:
    pictures = images(24)
    old, new = (train(pictures, NUMBERS, recipe=recipe) for recipe in ("1", "2"))
    for name in ("src", "fgr", "pha"):
        assert torch.equal(getattr(old, name), getattr(new, name))
    jittered = [draw_photometric(42, n).captured_jitter is not None for n in NUMBERS]
    assert [not torch.equal(a, b) for a, b in zip(old.bgr, new.bgr, strict=True)] == jittered


def test_the_second_recipe_differs_in_the_noise_alone() -> None:
    pictures = images(24)
    old, new = (train(pictures, NUMBERS, recipe=recipe) for recipe in ("2", "3"))
    assert same(train(pictures, NUMBERS), new)
    for name in ("fgr", "pha"):
        assert torch.equal(getattr(old, name), getattr(new, name))
    noisy = [draw_photometric(42, n).noise is not None for n in NUMBERS]
    for name in ("src", "bgr"):
        pairs = zip(getattr(old, name), getattr(new, name), strict=True)
        assert [not torch.equal(a, b) for a, b in pairs] == noisy


def test_on_the_cpu_the_fourth_recipe_is_the_third_to_the_bit() -> None:
    pictures = images(24)
    for together in (None, False, True):
        old, new = (train(pictures, NUMBERS, recipe=r, together=together) for r in ("3", "4"))
        assert same(old, new)


def test_the_recipe_and_the_device_decide_how_a_batch_is_composed() -> None:
    cpu, other = (
        torch.device("cpu"),
        torch.device("meta"),
    )  # a device that is no CPU and launches no kernel
    assert {usual_way(cpu, recipe, torch.float32) for recipe in RECIPES} == {"one by one"}
    assert [usual_way(other, recipe, torch.float32) for recipe in RECIPES] == [
        "one by one", "one by one", "together", "together",
    ]  # fmt: skip
    assert fused_obstacle(other) == "no GPU"


@pytest.mark.parametrize("together", [False, True])
def test_source_and_background_come_in_the_memory_format_that_is_asked_for(together: bool) -> None:
    key = Augmentation(42, range(2), 64)
    way: Way = "together" if together else "one by one"
    last = composite(*images(2), key, way=way, memory_format=torch.channels_last)
    for picture in (last.src, last.bgr):
        assert picture.is_contiguous(memory_format=torch.channels_last)
    assert same(last, composite(*images(2), key, way=way))


def test_the_pictures_of_the_second_recipe_never_change() -> None:
    """Written down once, on a device that adds up in its own order: a run of that recipe goes on with its pictures."""
    found = train(images(24), NUMBERS, recipe="2")
    sums = [x.double().sum().item() for x in found]
    assert sums == pytest.approx(SUMS_OF_RECIPE_2, rel=1e-9)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 2e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("size", [(40, 56), (36, 4)])
def test_all_examples_at_once_come_out_as_one_by_one(
    dtype: torch.dtype, within: float, size: tuple[int, int]
) -> None:
    pictures = images(24, *size)
    once, singly = (train(pictures, NUMBERS, dtype=dtype, together=t) for t in (True, False))
    for a, b in zip(once, singly, strict=True):
        assert a.shape == b.shape
        assert a.is_contiguous()
        assert (a - b).abs().max() <= within


def test_all_examples_at_once_take_a_third_of_the_operations() -> None:
    """A GPU launches a kernel for each, and the host waits for every launch."""
    pictures, numbers, found = images(8), NUMBERS[:8], []
    for together in (True, False):
        with Calls() as counted:
            train(pictures, numbers, together=together)
        found.append(counted.number)
    assert 3 * found[0] < found[1]


def test_each_recipe_has_its_own_arithmetic_for_the_captured_background() -> None:
    given = example()
    brighter = Photometric(
        **{**NOTHING.__dict__, "captured_jitter": Jitter(SAME.order, 1.1, 1, 1, 0)}
    )
    for recipe, expected in (
        ("1", 1.1 * given.bgr),
        ("2", given.bgr + 0.1),
        ("3", given.bgr + 0.1),
        ("4", given.bgr + 0.1),
    ):
        found = example()
        apply_(found, brighter, 1.0, recipe)  # type: ignore[arg-type]
        assert torch.allclose(found.bgr, expected, atol=1e-12)


def test_lengths_scale_with_the_crop() -> None:
    """Half the crop of half the frame looks like the whole at half the size."""
    number = next(
        i
        for i, p in enumerate(draw_photometric(42, i) for i in range(10_000))
        if p.bgr_blur == 4 and not p.bgr_sharpen and p.noise is None
    )
    fgr, pha, bgr = images(1, 128, 128)

    def halved(x: Tensor) -> Tensor:
        return x.float().reshape(64, 2, 64, 2, -1).mean(dim=(1, 3)).round().byte()

    small = (halved(fgr)[None], halved(pha)[None, ..., 0], halved(bgr)[None])
    whole = train((fgr, pha, bgr), [number], resolution=128)
    half = train(small, [number], resolution=128)
    unscaled = train(small, [number], resolution=64)

    def spread(x: Tensor) -> float:
        return x.bgr[..., 8:-8, 8:-8].std(dim=(2, 3)).mean().item()

    shrunk = Composed(*(torch.nn.functional.avg_pool2d(x, 2) for x in whole))
    assert spread(half) == pytest.approx(spread(shrunk), rel=0.2)
    assert spread(unscaled) < 0.7 * spread(shrunk)


# ---- the draws


def test_the_draws_of_one_key_never_change() -> None:
    """Written down once: a run that is resumed with a later version must see the same pictures."""
    p = draw_photometric(42, 66)
    assert p.pair_blur == 2
    assert not p.pair_sharpen
    assert p.fgr_jitter.order == ("contrast", "brightness", "saturation", "hue")
    assert p.fgr_jitter.brightness == pytest.approx(0.9254582489830111, rel=1e-12)
    assert p.fgr_jitter.contrast == pytest.approx(0.8949064981773409, rel=1e-12)
    assert p.fgr_jitter.saturation == pytest.approx(1.0389123310751038, rel=1e-12)
    assert p.fgr_jitter.hue == pytest.approx(0.040699096947226676, rel=1e-12)
    assert p.bgr_blur == 2
    assert p.bgr_sharpen
    assert p.bgr_jitter.order == ("contrast", "brightness", "saturation", "hue")
    assert p.bgr_jitter.brightness == pytest.approx(1.0853145350340048, rel=1e-12)
    assert p.bgr_jitter.hue == pytest.approx(-0.022003910094666693, rel=1e-12)
    assert p.shadow is not None
    assert p.shadow.strength == pytest.approx(0.2847829453156091, rel=1e-12)
    assert p.shadow.kernel == 31
    assert p.shadow.affine.degrees == pytest.approx(3.3116923471353026, rel=1e-12)
    assert p.shadow.affine.translate == pytest.approx((0.07662585231486319, -0.055946290083840555))
    assert p.shadow.affine.scale == pytest.approx(0.946035243718942, rel=1e-12)
    assert p.shadow.affine.shear == pytest.approx(-4.207506740801771, rel=1e-12)
    assert p.noise is not None
    assert p.noise.src == pytest.approx(0.010540265286748247, rel=1e-12)
    assert p.noise.bgr == pytest.approx(0.00495098491779421, rel=1e-12)
    assert p.noise.seed == 5013357466253461128
    assert p.captured_jitter is not None
    assert p.captured_jitter.order == ("saturation", "brightness", "hue", "contrast")
    assert p.captured_jitter.hue == pytest.approx(-0.02117895743513898, rel=1e-12)
    assert p.captured_affine is not None
    assert p.captured_affine.degrees == pytest.approx(-0.3229652876423208, rel=1e-12)
    assert p.captured_affine.translate == pytest.approx((0.008494685735745177, -0.004096111032459))


def drawn(parameters: Photometric, name: str) -> bool:
    """Whether an operation is done; a blur of radius 0 counts."""
    value = getattr(parameters, name)
    return value is not None and value is not False


DRAWN = [draw_photometric(1, number) for number in range(2000)]


@pytest.mark.parametrize(
    ("name", "probability"),
    [
        ("pair_blur", 0.1),
        ("pair_sharpen", 0.1),
        ("bgr_blur", 0.1),
        ("bgr_sharpen", 0.1),
        ("shadow", 0.3),
        ("noise", 0.4),
        ("captured_jitter", 0.8),
        ("captured_affine", 0.3),
    ],
)
def test_probabilities_are_the_references(name: str, probability: float) -> None:
    share = sum(drawn(p, name) for p in DRAWN) / len(DRAWN)
    # Four deviations of a share of 2,000: 0.027 at 0.1, 0.044 at 0.4.
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / 2000)


def test_operations_are_drawn_independently() -> None:
    both = sum(drawn(p, "shadow") and drawn(p, "noise") for p in DRAWN) / len(DRAWN)
    assert abs(both - 0.12) < 4 * math.sqrt(0.12 * 0.88 / 2000)
    both = sum(drawn(p, "pair_blur") and drawn(p, "bgr_blur") for p in DRAWN) / len(DRAWN)
    assert abs(both - 0.01) < 4 * math.sqrt(0.01 * 0.99 / 2000)


def spans(values: list[float], low: float, high: float) -> bool:
    """Whether uniform values stay within low..high and come within 5% of the span to both."""
    margin = 0.05 * (high - low)
    return low <= min(values) < low + margin and high - margin < max(values) <= high


def test_ranges_are_the_references() -> None:
    jitters = [p.fgr_jitter for p in DRAWN] + [p.bgr_jitter for p in DRAWN]
    captured = [p.captured_jitter for p in DRAWN if p.captured_jitter is not None]
    for factor in ("brightness", "contrast", "saturation"):
        assert spans([getattr(j, factor) for j in jitters], 0.85, 1.15)
        assert spans([getattr(j, factor) for j in captured], 0.82, 1.18)
    assert spans([j.hue for j in jitters], -0.05, 0.05)
    assert spans([j.hue for j in captured], -0.1, 0.1)
    shadows = [p.shadow for p in DRAWN if p.shadow is not None]
    assert spans([s.strength for s in shadows], 0, 0.3)
    assert spans([s.affine.degrees for s in shadows], -5, 5)
    assert spans([s.affine.shear for s in shadows], -5, 5)
    assert spans([s.affine.scale for s in shadows], 0.5, 1.5)
    for axis in (0, 1):
        assert spans([s.affine.translate[axis] for s in shadows], -0.2, 0.2)
    noises = [p.noise for p in DRAWN if p.noise is not None]
    assert spans([n.src for n in noises], 0, 0.03)
    assert spans([n.bgr for n in noises], 0, 0.03)
    affines = [p.captured_affine for p in DRAWN if p.captured_affine is not None]
    assert spans([a.degrees for a in affines], -1, 1)
    for axis in (0, 1):
        assert spans([a.translate[axis] for a in affines], -0.01, 0.01)
    assert {(a.scale, a.shear) for a in affines} == {(1, 0)}


def test_whole_numbers_take_each_of_their_values() -> None:
    assert {p.pair_blur for p in DRAWN} == {None, 0, 1, 2, 3, 4, 5}
    assert {p.bgr_blur for p in DRAWN} == {None, 0, 1, 2, 3, 4, 5}
    assert {p.shadow.kernel for p in DRAWN if p.shadow is not None} == set(range(20, 40))


def test_every_order_of_a_jitter_is_as_likely() -> None:
    counts = collections.Counter(p.fgr_jitter.order for p in DRAWN)
    assert len(counts) == 24
    assert all(sorted(order) == sorted(SAME.order) for order in counts)
    # 83 each, within five deviations of 8.9.
    assert all(38 < count < 129 for count in counts.values())


def test_the_number_of_words_never_depends_on_what_was_drawn(monkeypatch) -> None:
    read: list[int] = []

    class Counting(Draws):
        def __init__(self, seed: int, stream: Stream, number: int) -> None:
            super().__init__(seed, stream, number)
            self.counts = stream is Stream.PHOTOMETRIC

        def words(self, count: int):
            if self.counts:
                read.append(count)
            return super().words(count)

    monkeypatch.setattr(module, "Draws", Counting)
    for number in range(200):
        draw_photometric(42, number)
    assert read == [37] * 200


def test_drawing_for_a_batch_is_quick() -> None:
    """Two milliseconds at the most for eight examples, the best of twenty batches."""
    took = []
    for first in range(0, 160, 8):
        start = time.perf_counter()
        for number in range(first, first + 8):
            draw_photometric(42, number)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.002
