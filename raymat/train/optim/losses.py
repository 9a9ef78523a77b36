"""The losses of the two stages.

Lin et al., "Real-Time High-Resolution Background Matting", CVPR 2021.

Every term is a mean over pixels, so that a loss over n examples is the mean of the n examples'
losses; over no example at all it is 0, with a graph. Half precision is widened to float32 first:
the gradient of Sobel's square root needs it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raymat.model.ops import resize, widened


def sobel(x: Tensor) -> Tensor:
    """Return the magnitude of the gradient: (n, C, H, W) -> (n, C, H, W), at least 1e-3.

    Sobel's 3x3 kernels divided by 8, edges repeated; sqrt(gx^2 + gy^2 + 1e-6), whose gradient stays
    finite where the picture is flat. Computed as sums of shifted slices: a convolution of so few
    channels takes 10% of a GPU's step.
    """
    x = torch.cat([x[..., :1, :], x, x[..., -1:, :]], dim=-2)
    x = torch.cat([x[..., :1], x, x[..., -1:]], dim=-1)
    smooth = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    change = x[..., 2:, :] - x[..., :-2, :]
    gx = (smooth[..., 2:] - smooth[..., :-2]) / 8
    gy = (change[..., :-2] + 2 * change[..., 1:-1] + change[..., 2:]) / 8
    return (gx * gx + gy * gy + 1e-6).sqrt()


def base_loss(
    pred_pha: Tensor,
    pred_fgr: Tensor,
    pred_err: Tensor,
    true_pha: Tensor,
    true_fgr: Tensor,
) -> Tensor:
    """Return the loss of the base stage, a scalar.

    pred_pha, pred_err, true_pha: (n, 1, H, W) in 0..1. pred_fgr, true_fgr: (n, 3, H, W) in 0..1.
    The error map learns from a detached alpha: no gradient flows from it into the alpha.
    """
    pred_pha, pred_fgr, pred_err = widened(pred_pha), widened(pred_fgr), widened(pred_err)
    true_pha, true_fgr = widened(true_pha), widened(true_fgr)
    true_err = (pred_pha.detach() - true_pha).abs()
    return _matte_loss(pred_pha, pred_fgr, true_pha, true_fgr) + _mean((pred_err - true_err) ** 2)


def refine_loss(
    pred_pha: Tensor,
    pred_fgr: Tensor,
    pred_pha_sm: Tensor,
    pred_fgr_sm: Tensor,
    pred_err_sm: Tensor,
    true_pha: Tensor,
    true_fgr: Tensor,
) -> Tensor:
    """Return the loss of the refine stage, a scalar.

    pred_pha, true_pha: (n, 1, H, W), pred_fgr, true_fgr: (n, 3, H, W); pred_pha_sm, pred_err_sm:
    (n, 1, h, w), pred_fgr_sm: (n, 3, h, w); all in 0..1.

    The truth is resized to h, w for the coarse terms. The coarse error map is compared at full resolution,
    and here, unlike in the base stage, its gradient flows into the alpha too.
    """
    pred_pha_sm, pred_err_sm = widened(pred_pha_sm), widened(pred_err_sm)
    true_pha, true_fgr = widened(true_pha), widened(true_fgr)
    fine = _matte_loss(widened(pred_pha), widened(pred_fgr), true_pha, true_fgr)
    size = pred_pha_sm.shape[2:]
    true_pha_sm, true_fgr_sm = resize(true_pha, size), resize(true_fgr, size)
    coarse = _matte_loss(pred_pha_sm, widened(pred_fgr_sm), true_pha_sm, true_fgr_sm)
    true_err = (resize(pred_pha_sm, true_pha.shape[2:]) - true_pha).abs()
    return fine + coarse + _mean((resize(pred_err_sm, true_pha.shape[2:]) - true_err) ** 2)


def _matte_loss(pred_pha: Tensor, pred_fgr: Tensor, true_pha: Tensor, true_fgr: Tensor) -> Tensor:
    """L1 of alpha, of its Sobel magnitude, and of the foreground where the true alpha is not 0."""
    shown = (true_pha != 0).to(pred_fgr.dtype)
    return (
        _mean((pred_pha - true_pha).abs())
        + _mean((sobel(pred_pha) - sobel(true_pha)).abs())
        + _mean(((pred_fgr - true_fgr) * shown).abs())
    )


def _mean(x: Tensor) -> Tensor:
    """Return the mean; 0 of no elements, so that an empty share adds nothing instead of NaN."""
    return x.mean() if x.numel() else x.sum()
