"""The metrics against values worked out by hand, and against scipy's filters and labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from raymat.errors import ConfigError
from raymat.train.validation.matting_metrics import ALPHA_METRICS, alpha_metrics, foreground_mse


def picture(*rows: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(rows, dtype=dtype)[None, None]


def measured(name: str, pred: Tensor, true: Tensor) -> float:
    return alpha_metrics(pred, true, [name])[name].item()


def mattes(seed: int, n: int = 3, height: int = 40, width: int = 56) -> Tensor:
    """Soft blobs: (n, 1, h, w) in 0..1 with flat, graded and disconnected parts, in steps of 1/255 as float32."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, 1, height // 8, width // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(noise, size=(height, width), mode="bicubic")
    return ((smooth * 3 - 1).clamp(0, 1) * 255).round() / 255


# By hand.


def test_sad_is_the_sum_of_absolute_differences_in_thousands() -> None:
    pred, true = picture([1.0, 0.5], [0.0, 0.25]), picture([0.5, 0.5], [0.25, 0.0])
    assert measured("sad", pred, true) == pytest.approx((0.5 + 0 + 0.25 + 0.25) / 1000)


def test_mse_is_the_mean_of_squared_differences_in_thousandths() -> None:
    pred, true = picture([1.0, 0.5], [0.0, 0.25]), picture([0.5, 0.5], [0.25, 0.0])
    assert measured("mse", pred, true) == pytest.approx(1000 * (0.25 + 0 + 0.0625 + 0.0625) / 4)


def test_grad_of_a_lone_pixel_is_that_of_two_kernels_of_norm_one() -> None:
    true = torch.zeros(1, 1, 11, 13, dtype=torch.float64)
    true[..., 5, 6] = 1.0
    assert measured("grad", torch.zeros_like(true), true) == pytest.approx((1 + 1) / 1000)


def test_grad_of_an_edge_is_what_the_gaussian_s_derivative_gives() -> None:
    # g(k) = exp(-k^2 / 3.92) = 1, 0.774837, 0.360448, 0.100669, 0.016880 for k = 0 .. 4
    # d(k) = k g(k)           = 0, 0.774837, 0.720896, 0.302007, 0.067520
    # |g|^2 = 1 + 2 (0.600372 + 0.129923 + 0.010134 + 0.000285)      = 2.481428
    # |d|^2 = 2 (0.600372 + 0.519691 + 0.091208 + 0.004559)          = 2.431660
    # sum of g (the smoothing along the edge sees ones)              = 3.505668
    # across the edge, at 1, 2, 3, 4 pixels from it to either side, the tails of d:
    #   1.865260, 1.090423, 0.369527, 0.067520; twice the sum of their squares = 9.618652
    # a row: 9.618652 x 3.505668^2 / (2.481428 x 2.431660)           = 19.59075
    true = torch.tensor([0.0] * 4 + [1.0] * 4, dtype=torch.float64).expand(1, 1, 5, 8)
    assert measured("grad", torch.zeros_like(true), true) == pytest.approx(
        5 * 19.59075 / 1000, rel=1e-5
    )
    assert measured("grad", torch.zeros_like(true.mT), true.mT) == pytest.approx(
        5 * 19.59075 / 1000, rel=1e-5
    )


def test_grad_knows_no_direction_and_no_offset() -> None:
    true = mattes(1).double() / 2
    assert alpha_metrics(true + 0.25, true)["grad"].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert alpha_metrics(0.5 - true, true)["grad"].tolist() == pytest.approx([0, 0, 0], abs=1e-12)


def test_conn_counts_what_is_cut_off_from_the_largest_part() -> None:
    # The three to the left are the largest part at every level: level 1, nothing above it. The last pixel leaves it at
    # 0.1 already, so its level is 0: 0.6 and 1 lie above it.
    pred, true = picture([1.0, 1.0, 1.0, 0.0, 0.6]), picture([1.0, 1.0, 1.0, 0.0, 1.0])
    assert measured("conn", pred, true) == pytest.approx((1.0 - 0.6) / 1000)


def test_conn_forgives_up_to_a_level_and_a_half() -> None:
    # 0.9 reaches level 0.9: the truth is 0.1 above, less than 0.15. 0.8 reaches 0.8: the truth is 0.2 above.
    true = picture([1.0, 1.0, 1.0])
    assert measured("conn", picture([1.0, 0.9, 1.0]), true) == 0.0
    assert measured("conn", picture([1.0, 0.8, 1.0]), true) == pytest.approx(0.2 / 1000)


def test_conn_connects_by_sides_and_not_by_corners() -> None:
    # The two below touch the rest by a corner alone: level 0, 1 against 0.5 cut off.
    pred = picture([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5])
    true = picture([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0])
    assert measured("conn", pred, true) == pytest.approx(2 * 0.5 / 1000)


def test_conn_of_nothing_in_common_is_what_each_has() -> None:
    # No level has a part that is in both: level 0 everywhere.
    pred, true = picture([1.0, 0.0, 0.0]), picture([0.0, 0.0, 0.5])
    assert measured("conn", pred, true) == pytest.approx((1.0 + 0.5) / 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_alpha_of_a_level_reaches_it_in_its_own_precision(dtype: torch.dtype) -> None:
    # 0.7 as float32 is less than 0.7: were it not to reach level 0.7, 0.1 would be above level 0.6, and of 0.8 0.2.
    pred, true = picture([0.7, 0.7], dtype=dtype), picture([0.8, 0.8], dtype=dtype)
    assert measured("conn", pred, true) == 0.0


def test_the_foreground_counts_where_alpha_is_above_zero_however_faint() -> None:
    pred, true = torch.full((2, 3, 2, 2), 0.5), torch.full((2, 3, 2, 2), 0.5)
    pred[:, 0] = 0.75  # one channel of three is off by 0.25 ...
    pred[:, :, 1] = 1.0  # ... and the lower row is wrong where there is no alpha
    pha = torch.zeros(2, 1, 2, 2)
    pha[0, :, 0] = 1e-3
    found = foreground_mse(pred, true, pha)
    assert found[0].item() == pytest.approx(1000 * 0.0625 / 3)
    assert math.isnan(found[1].item())  # nowhere


# Against scipy.


def with_scipy(name: str, pred: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Grad and Conn of one picture (h, w) as public evaluations write them, from scipy's parts."""
    if name == "grad":
        lone = np.zeros((9, 9))
        lone[4, 4] = 1.0

        def derivative(x: NDArray[np.float64], order: tuple[int, int]) -> NDArray[np.float64]:
            return ndimage.gaussian_filter(x, 1.4, order=order, mode="nearest", radius=4)

        def magnitude(x: NDArray[np.float64]) -> NDArray[np.float64]:
            parts = [
                derivative(x, o) / np.linalg.norm(derivative(lone, o)) for o in ((0, 1), (1, 0))
            ]
            return np.hypot(*parts)

        return float(np.sum((magnitude(pred) - magnitude(true)) ** 2) / 1000)
    level = np.full(pred.shape, -1.0)
    for i in range(1, 11):
        labels, parts = ndimage.label((pred >= i / 10) & (true >= i / 10))
        sizes = ndimage.sum_labels(np.ones(pred.shape), labels, range(1, parts + 1))
        largest = labels == 1 + np.argmax(sizes) if parts else np.zeros(pred.shape, bool)
        level[(level == -1) & ~largest] = (i - 1) / 10
    level[level == -1] = 1.0
    phi = [1 - (x - level) * (x - level >= 0.15) for x in (pred, true)]
    return float(np.abs(phi[0] - phi[1]).sum() / 1000)


@pytest.mark.parametrize("name", ["grad", "conn"])
def test_grad_and_conn_agree_with_scipy(name: str) -> None:
    pred, true = mattes(2).double(), mattes(3).double()
    expected = [
        with_scipy(name, p[0].numpy(), t[0].numpy()) for p, t in zip(pred, true, strict=True)
    ]
    assert min(expected) > 1e-3  # there is something to agree on
    assert alpha_metrics(pred, true)[name].tolist() == pytest.approx(expected, rel=1e-12)


# As functions of tensors.


def test_a_picture_s_numbers_do_not_depend_on_its_batch() -> None:
    pred, true = mattes(4, n=5), mattes(5, n=5)
    together = alpha_metrics(pred, true)
    for i in range(5):
        alone = alpha_metrics(pred[i : i + 1], true[i : i + 1])
        assert {n: x[i].item() for n, x in together.items()} == {
            n: x.item() for n, x in alone.items()
        }


def test_a_matte_is_at_no_distance_from_itself() -> None:
    true = mattes(6)
    for name, values in alpha_metrics(true, true).items():
        assert values.dtype == torch.float64, name
        assert values.tolist() == [0.0, 0.0, 0.0], name


def test_only_what_is_asked_for_is_measured() -> None:
    true = mattes(7)
    assert list(alpha_metrics(true, true, ["conn", "sad"])) == ["conn", "sad"]
    assert tuple(alpha_metrics(true, true)) == ALPHA_METRICS


def test_no_picture_has_no_numbers() -> None:
    empty = torch.zeros(0, 1, 8, 8)
    assert {n: x.shape for n, x in alpha_metrics(empty, empty).items()} == dict.fromkeys(
        ALPHA_METRICS, (0,)
    )
    assert foreground_mse(torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8), empty).shape == (0,)


def test_half_precision_is_summed_in_double() -> None:
    pred, true = torch.full((1, 1, 200, 200), 0.5), torch.zeros(1, 1, 200, 200)
    assert measured("sad", pred.half(), true.half()) == 20.0
    assert measured("mse", pred.bfloat16(), true) == 250.0


def test_a_matte_that_is_not_a_number_has_no_number() -> None:
    true = mattes(11)
    pred = true.clone()
    pred[1, 0, 3, 4] = math.nan
    for name, values in alpha_metrics(pred, true).items():
        assert [math.isnan(value) for value in values.tolist()] == [False, True, False], name


def test_an_unknown_metric_is_refused() -> None:
    true = mattes(8)
    with pytest.raises(ConfigError, match="unknown metric 'mad': there are sad, mse, grad, conn"):
        alpha_metrics(true, true, ["sad", "mad"])


@pytest.mark.gpu
def test_the_device_gives_the_same_numbers() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pred, true = mattes(9), mattes(10)
    here, there = alpha_metrics(pred, true), alpha_metrics(pred.cuda(), true.cuda())
    for name in ALPHA_METRICS:
        assert there[name].device.type == "cuda"
        assert there[name].tolist() == pytest.approx(here[name].tolist(), rel=1e-12)
