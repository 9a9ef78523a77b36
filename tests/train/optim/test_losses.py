from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raymat.train.optim.losses import base_loss, refine_loss, sobel


def rand(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def full(value: float, channels: int = 1, size: int = 8) -> Tensor:
    return torch.full((1, channels, size, size), value, dtype=torch.float64)


def refine_inputs(n: int = 2) -> list[Tensor]:
    """pha, fgr, pha_sm, fgr_sm, err_sm, true_pha, true_fgr."""
    large, small = (16, 24), (4, 6)
    shapes = [(1, large), (3, large), (1, small), (3, small), (1, small), (1, large), (3, large)]
    tensors = [rand(i, n, c, *size) for i, (c, size) in enumerate(shapes)]
    tensors[5] = (tensors[5] * 1.6 - 0.3).clamp(0, 1)
    return tensors


def base_inputs(n: int = 2) -> list[Tensor]:
    """pha, fgr, err, true_pha, true_fgr."""
    tensors = [rand(i, n, c, 12, 8) for i, c in enumerate((1, 3, 1, 1, 3))]
    tensors[3] = (tensors[3] * 1.6 - 0.3).clamp(0, 1)
    return tensors


def test_sobel_of_a_ramp_is_its_slope_and_half_of_it_at_the_edges() -> None:
    ramp = 0.1 * torch.arange(5, dtype=torch.float64).expand(1, 1, 4, 5)
    slope, edge = (0.01 + 1e-6) ** 0.5, (0.0025 + 1e-6) ** 0.5
    expected = torch.tensor([edge, slope, slope, slope, edge], dtype=torch.float64)
    torch.testing.assert_close(sobel(ramp), expected.expand(1, 1, 4, 5))
    torch.testing.assert_close(sobel(ramp.mT), expected[:, None].expand(1, 1, 5, 4))


def test_sobel_of_a_flat_picture_has_a_finite_gradient() -> None:
    x = full(0.5).requires_grad_()
    out = sobel(x)
    torch.testing.assert_close(out, full(1e-3))
    out.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_sobel_by_slices_is_sobel_by_convolution() -> None:
    x = rand(0, 2, 3, 9, 11)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64) / 8
    kernels = torch.stack([kernel, kernel.T])[:, None]
    padded = F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    squares = F.conv2d(padded, kernels).square().sum(1).reshape(x.shape)
    torch.testing.assert_close(sobel(x), (squares + 1e-6).sqrt(), atol=1e-14, rtol=1e-12)


def test_base_loss_is_the_sum_of_its_four_terms() -> None:
    # |0.5 - 0.25| + no edges + |0.3 - 0.1| + (0.05 - 0.25)^2
    loss = base_loss(full(0.5), full(0.3, 3), full(0.05), full(0.25), full(0.1, 3))
    assert loss.item() == pytest.approx(0.25 + 0.0 + 0.2 + 0.04)


def test_foreground_counts_only_where_alpha_is_not_zero_over_all_pixels() -> None:
    pha = full(0.0)
    pha[..., :2, :] = 1e-3  # a quarter of the rows, however faint
    loss = base_loss(pha, full(0.9, 3), full(0.0), pha, full(0.1, 3))
    assert loss.item() == pytest.approx(0.8 / 4)


def test_base_error_teaches_the_error_and_not_the_alpha() -> None:
    pha = full(0.5).requires_grad_()
    err = full(0.0).requires_grad_()
    grads = torch.autograd.grad(
        base_loss(pha, full(0.0, 3), err, full(0.25), full(0.0, 3)), (pha, err)
    )
    assert grads[0].sum().item() == pytest.approx(1.0)  # of the L1 term alone
    assert grads[1].sum().item() == pytest.approx(2 * (0.0 - 0.25))


def test_refine_loss_is_the_sum_of_its_seven_terms() -> None:
    loss = refine_loss(
        full(0.5), full(0.3, 3), full(0.4, size=2), full(0.2, 3, 2), full(0.05, size=2),
        full(0.25), full(0.1, 3),
    )  # fmt: skip
    # alpha 0.25 and 0.15, foreground 0.2 and 0.1, error (0.05 - 0.15)^2, no edges
    assert loss.item() == pytest.approx(0.25 + 0.15 + 0.2 + 0.1 + 0.01)


def test_refine_error_teaches_the_coarse_alpha_too() -> None:
    pha_sm = full(0.5, size=2).requires_grad_()
    loss = refine_loss(
        full(0.25), full(0.0, 3), pha_sm, full(0.0, 3, 2), full(0.0, size=2), full(0.25),
        full(0.0, 3),
    )  # fmt: skip
    loss.backward()
    assert pha_sm.grad is not None
    assert pha_sm.grad.sum().item() == pytest.approx(1.0 + 2 * 0.25)


def test_a_batch_s_loss_is_the_mean_of_its_examples_losses() -> None:
    for loss, tensors in ((base_loss, base_inputs(4)), (refine_loss, refine_inputs(4))):
        whole = loss(*tensors)
        shares = [loss(*(t[a:b] for t in tensors)) * (b - a) for a, b in ((0, 1), (1, 4))]
        assert whole.item() == pytest.approx(sum(shares).item() / 4, rel=1e-12)


def test_the_loss_of_nothing_is_zero_with_a_graph() -> None:
    for loss, tensors in ((base_loss, base_inputs(0)), (refine_loss, refine_inputs(0))):
        leaf = tensors[0].requires_grad_()
        value = loss(*tensors)
        value.backward()
        assert value.item() == 0.0
        assert leaf.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_it_is_squared(dtype: torch.dtype) -> None:
    for loss, tensors, predicted in (
        (base_loss, base_inputs(), 3),
        (refine_loss, refine_inputs(), 5),
    ):
        mixed = [t.to(dtype if i < predicted else torch.float32) for i, t in enumerate(tensors)]
        value = loss(*mixed)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(*(t.double() for t in mixed)).item(), rel=1e-5)
