"""The networks in a form that exporters can trace: the same results, with every size left free.

An exporter records one forward pass. What Python computes from sizes on the way (a coarse size, a number of patches)
would become a constant, so it stands here in functions that TorchScript compiles (`script_if_tracing`) and torch.export
follows symbolically. Weights and layers are the network's own; only the glue is written again.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymat.model.matting import MattingBase, MattingRefine
from raymat.model.refiner import PATCH

__all__ = ["PortableBase", "PortableRefine", "portable"]

# Not inside a function, where TorchScript would read the comment for the type checker as its own.
is_scripting = torch.jit.is_scripting  # type: ignore[attr-defined]


def portable(network: MattingBase) -> nn.Module:
    """Wrap `network` for an exporter; shares its modules, and both must be in evaluation mode.

    Its forward pass does what the network's does, but checks sizes only under TorchScript (ValueError), needs n of at
    least 1, and mixes no precisions.
    """
    if isinstance(network, MattingRefine):
        return PortableRefine(network)
    return PortableBase(network)


class PortableBase(nn.Module):
    """`MattingBase` for an exporter."""

    def __init__(self, network: MattingBase) -> None:
        super().__init__()
        self.network = network

    def forward(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, ...]:
        """As `MattingBase.forward`."""
        src = _checked(src, bgr)
        pha, residual, err, hid = self.network.coarse(src, bgr)
        return pha, (residual + src).clamp(0, 1), err, hid


class PortableRefine(nn.Module):
    """`MattingRefine` for an exporter."""

    def __init__(self, network: MattingRefine) -> None:
        super().__init__()
        self.network = network

    def forward(self, src: Tensor, bgr: Tensor) -> tuple[Tensor, ...]:
        """As `MattingRefine.forward`."""
        src = _checked(src, bgr)
        scale = float(self.network.backbone_scale)
        src_sm, bgr_sm = _scaled(src, scale), _scaled(bgr, scale)
        pha_sm, residual_sm, err_sm, hid_sm = self.network.coarse(src_sm, bgr_sm)
        pictures = torch.cat([src, bgr], dim=1)
        out, ref_sm = self._refine(
            pictures, torch.cat([pha_sm, residual_sm], dim=1), err_sm, hid_sm
        )
        fgr = (out[:, 1:] + src).clamp(0, 1)
        fgr_sm = (residual_sm + src_sm).clamp(0, 1)
        return out[:, :1].clamp(0, 1), fgr, pha_sm, fgr_sm, err_sm, ref_sm

    def _refine(
        self, pictures: Tensor, coarse: Tensor, err: Tensor, hid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return alpha and foreground residual (n, 4, H, W), and what was refined (n, 1, H/4, W/4), as `Refiner.forward`."""
        refiner = self.network.refiner
        x = _divided(torch.cat([hid, coarse], dim=1), pictures, 2)
        y = _divided(pictures, pictures, 2)
        err = _divided(err, pictures, PATCH)
        if refiner.mode == "full":
            return refiner.refine_densely(x, y, pictures), torch.ones_like(err)
        if refiner.mode == "thresholding":
            ref = (err > refiner.threshold).to(err.dtype)
        else:
            count = refiner.sample_pixels // PATCH**2
            ref = _sampled(err, count, refiner.prevent_oversampling)
        where = _places(ref)
        margin_half, margin_full = refiner.margins
        cuts = [_cropped(z, where, PATCH // 2, margin_half) for z in (x, y)]
        fine = refiner.refine_cuts(
            torch.cat(cuts, dim=1), _cropped(pictures, where, PATCH, margin_full)
        )
        return _replaced(_divided(coarse, pictures, 1), fine, where), ref


@torch.jit.script_if_tracing
def _checked(src: Tensor, bgr: Tensor) -> Tensor:
    """Return `src`; under TorchScript, raise a ValueError if the pictures' sizes are not allowed."""
    if is_scripting():
        if src.shape != bgr.shape or src.dim() != 4 or src.shape[1] != 3:
            raise ValueError("src and bgr must have the same shape (n, 3, height, width)")
        if src.shape[2] % 4 != 0 or src.shape[3] % 4 != 0 or src.numel() == 0:
            raise ValueError("height and width must be positive multiples of 4")
    return src


@torch.jit.script_if_tracing
def _scaled(x: Tensor, scale: float) -> Tensor:
    """Resize (n, C, H, W) bilinearly to `scale` times its size, rounded down."""
    height, width = math.floor(x.shape[2] * scale), math.floor(x.shape[3] * scale)
    return F.interpolate(x, size=[height, width], mode="bilinear", align_corners=False)


@torch.jit.script_if_tracing
def _divided(x: Tensor, like: Tensor, divisor: int) -> Tensor:
    """Resize (n, C, h, w) bilinearly to the size of `like` (n, c, H, W) divided by `divisor`."""
    height, width = like.shape[2] // divisor, like.shape[3] // divisor
    return F.interpolate(x, size=[height, width], mode="bilinear", align_corners=False)


@torch.jit.script_if_tracing
def _sampled(err: Tensor, count: int, prevent_oversampling: bool) -> Tensor:
    """Select as `Refiner.select` does when sampling; err (n, 1, h, w)."""
    flat = err.flatten(1)
    if is_scripting():
        count = min(count, flat.shape[1])
    else:
        count = torch.sym_min(count, flat.shape[1])
    chosen = flat.topk(count, dim=1, sorted=False).indices
    ref = torch.zeros_like(flat).scatter(1, chosen, 1.0)
    if prevent_oversampling:
        ref = ref * (flat > 0).to(flat.dtype)
    return ref.view(err.shape)


@torch.jit.script_if_tracing
def _places(ref: Tensor) -> Tensor:
    """Return example, row and column of each chosen patch of (n, 1, h, w): int64 (p, 3)."""
    where = torch.nonzero(ref[:, 0])
    if not is_scripting():  # noqa: SIM102
        # A condition of its own, so that TorchScript does not compile what is below it.
        if torch.compiler.is_exporting():
            # torch.export traces only the case of some patches. The same graph works for none.
            torch._check(where.shape[0] > 0)
    return where


@torch.jit.script_if_tracing
def _cropped(x: Tensor, where: Tensor, size: int, margin: int) -> Tensor:
    """Crop as `raymat.model.refiner.crop`; where: int64 (p, 3), example, row and column of each patch."""
    padded = F.pad(x, [margin, margin, margin, margin])
    height, width, side = padded.shape[2], padded.shape[3], size + 2 * margin
    steps = torch.arange(side, device=x.device)
    rows = where[:, 0:1] * height + where[:, 1:2] * size + steps
    columns = where[:, 2:3] * size + steps
    found = (rows[:, :, None] * width + columns[:, None, :]).reshape(-1)
    pixels = padded.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    cut = pixels.index_select(0, found).reshape(-1, side, side, x.shape[1])
    return cut.permute(0, 3, 1, 2)


@torch.jit.script_if_tracing
def _replaced(x: Tensor, values: Tensor, where: Tensor) -> Tensor:
    """Replace as `raymat.model.refiner.replace`, a whole patch at a time; where: as for `_cropped`."""
    n, channels, height, width = x.shape
    patches = x.reshape(n, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(n * (height // 4) * (width // 4), channels, 4, 4)
    found = (where[:, 0] * (height // 4) + where[:, 1]) * (width // 4) + where[:, 2]
    patches = patches.index_copy(0, found, values)
    patches = patches.reshape(n, height // 4, width // 4, channels, 4, 4)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(n, channels, height, width)
