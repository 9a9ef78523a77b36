"""Refiner: alpha and foreground at full resolution, only where the coarse prediction errs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymat.errors import ConfigError
from raymat.model.ops import doubled, resize, widened

MODES = ("full", "sampling", "thresholding")
PATCH = 4
"""Side of a patch, in pixels of the full resolution."""


class Patches(NamedTuple):
    """Indices of chosen patches, ordered by example, row and column: int64 (p,) each, counted in patches."""

    example: Tensor
    row: Tensor
    column: Tensor

    def pixels(self, side: int, stride: int, height: int, width: int) -> Tensor:
        """Return the indices of each patch's pixels in a flattened picture (n, height, width).

        A patch begins `stride` pixels after the one before it and is `side` pixels wide; it must
        lie within the picture. Returns int64 (p * side * side,).
        """
        steps = torch.arange(side, device=self.row.device)
        rows = (self.row * stride)[:, None] + steps
        columns = (self.column * stride)[:, None] + steps
        lines = self.example[:, None] * height + rows
        return (lines[:, :, None] * width + columns[:, None, :]).reshape(-1)


def crop(x: Tensor, patches: Patches, size: int, margin: int) -> Tensor:
    """Cut the patches out of a picture, each with its surroundings; 0 beyond the picture's edges.

    x: (n, C, H, W), where a patch is `size` pixels wide.
    Returns (p, C, size + 2 margin, size + 2 margin), channels-last.

    Pixels are gathered from the channels-last picture with index_select: its backward adds the
    overlapping gradients in a fixed order on the CPU for any number of threads (plain indexing does
    not), and on CUDA in deterministic mode; and it needs neither the memory nor the time of the
    backward of `unfold`.
    """
    padded = F.pad(x, (margin,) * 4)
    n, channels, height, width = padded.shape
    side = size + 2 * margin
    pixels = padded.permute(0, 2, 3, 1).reshape(n * height * width, channels)
    found = pixels.index_select(0, patches.pixels(side, size, height, width))
    return found.reshape(len(patches.row), side, side, channels).permute(0, 3, 1, 2)


def replace(x: Tensor, values: Tensor, patches: Patches) -> Tensor:
    """Return a copy of x with the patches replaced.

    x: (n, C, H, W). values: (p, C, 4, 4). Returns (n, C, H, W) in x's dtype, channels-last.
    """
    n, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(n * height * width, channels)
    # Under autocast the values are narrower than the picture; index_copy wants one dtype.
    new = values.permute(0, 2, 3, 1).reshape(-1, channels).to(x.dtype)
    found = pixels.index_copy(0, patches.pixels(PATCH, PATCH, height, width), new)
    return found.reshape(n, height, width, channels).permute(0, 3, 1, 2)


class Refiner(nn.Module):
    """Refiner of two convolutions at half resolution and two at full, on patches of 4x4 pixels or everywhere.

    Modes: "sampling" refines the `sample_pixels` // 16 patches with the largest error of each
    picture (all of a picture that has fewer), with `prevent_oversampling` none whose error is 0;
    "thresholding" those with an error over `threshold`; "full" all of them, densely. Where nothing
    is chosen, the result is the upsampled coarse prediction and the refiner's gradients are 0:
    every batch, even an empty one, passes through the same modules, so that no worker misses a collective of the others.
    """

    def __init__(
        self,
        mode: str = "sampling",
        sample_pixels: int = 80_000,
        threshold: float = 0.1,
        kernel_size: int = 3,
        prevent_oversampling: bool = True,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ConfigError(f"refine_mode must be one of {', '.join(MODES)}, got {mode!r}")
        if kernel_size not in (1, 3):
            raise ConfigError(f"refine_kernel_size must be 1 or 3, got {kernel_size}")
        if sample_pixels < 1:
            raise ConfigError(f"refine_sample_pixels must be at least 1, got {sample_pixels}")
        self.mode = mode
        self.sample_pixels = sample_pixels
        self.threshold = threshold
        self.kernel_size = kernel_size
        self.prevent_oversampling = prevent_oversampling
        self.conv1 = nn.Conv2d(32 + 1 + 3 + 6, 24, kernel_size, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 16, kernel_size, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16 + 6, 12, kernel_size, bias=False)
        self.bn3 = nn.BatchNorm2d(12)
        self.conv4 = nn.Conv2d(12, 4, kernel_size)

    def forward(
        self, src: Tensor, bgr: Tensor, pha: Tensor, fgr: Tensor, err: Tensor, hid: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Refine a coarse prediction.

        src, bgr: (n, 3, H, W) in 0..1, H and W multiples of 4.
        pha: (n, 1, h, w) coarse alpha in 0..1. fgr: (n, 3, h, w) coarse foreground residual,
        unbounded.
        err: (n, 1, h, w) coarse error in 0..1. hid: (n, 32, h, w) hidden features, at least 0.

        Returns pha (n, 1, H, W) and fgr (n, 3, H, W), both unbounded, fgr still a residual; and
        ref (n, 1, H/4, W/4), 1 where a patch was refined, else 0.
        """
        pictures = torch.cat([src, bgr], dim=1).to(hid.dtype)
        half = (src.shape[2] // 2, src.shape[3] // 2)
        coarse = torch.cat([pha, fgr], dim=1)
        features = torch.cat([hid, coarse], dim=1)
        x, y = resize(features, half), resize(pictures, half)
        if self.mode == "full":
            out = self.refine_densely(x, y, pictures)
            ref = src.new_ones((len(src), 1, half[0] // 2, half[1] // 2))
        else:
            ref = self.select(resize(err.detach(), (half[0] // 2, half[1] // 2)))
            patches = Patches(*torch.nonzero(ref[:, 0], as_tuple=True))
            fine = self._refine_patches(x, y, pictures, patches)
            # What becomes the result is interpolated and kept in full precision.
            out = replace(resize(widened(coarse), src.shape[2:]), fine, patches)
        return out[:, :1], out[:, 1:], ref

    def select(self, err: Tensor) -> Tensor:
        """Return the refinement map, 1 for a chosen patch, else 0, alike to err (n, 1, H/4, W/4)."""
        if self.mode == "thresholding":
            return (err > self.threshold).to(err.dtype)
        flat = err.flatten(1)
        count = min(self.sample_pixels // PATCH**2, flat.shape[1])
        # Among equal errors topk's choice is arbitrary but, on one kind of device, always the same.
        chosen = flat.topk(count, dim=1, sorted=False).indices
        ref = torch.zeros_like(flat).scatter(1, chosen, 1.0)
        if self.prevent_oversampling:
            ref = ref * (flat > 0)
        return ref.view_as(err)

    def _refine_patches(self, x: Tensor, y: Tensor, pictures: Tensor, patches: Patches) -> Tensor:
        """Return alpha and foreground residual of the patches, (p, 4, 4, 4)."""
        margin_half, margin_full = self.margins
        cuts = [crop(z, patches, PATCH // 2, margin_half) for z in (x, y)]
        return self.refine_cuts(torch.cat(cuts, dim=1), crop(pictures, patches, PATCH, margin_full))

    def refine_densely(self, x: Tensor, y: Tensor, pictures: Tensor) -> Tensor:
        """Return alpha and foreground residual of every pixel, (n, 4, H, W).

        x: (n, 36, H/2, W/2) hidden features, alpha and foreground residual; y: (n, 6, H/2, W/2)
        and pictures: (n, 6, H, W) source and background.
        """
        margin_half, margin_full = self.margins
        half = F.pad(torch.cat([x, y], dim=1), (margin_half,) * 4)
        return self.refine_cuts(half, F.pad(pictures, (margin_full,) * 4))

    @property
    def margins(self) -> tuple[int, int]:
        """Margins in pixels that are cut with a patch, at half and at full resolution.

        Each pair of 3x3 convolutions without padding removes 2 pixels on each side, the first pair at half resolution.
        """
        return (3, 2) if self.kernel_size == 3 else (0, 0)

    def refine_cuts(self, half: Tensor, full: Tensor) -> Tensor:
        """Apply the four convolutions; return alpha and foreground residual, (p, 4, h, w).

        half: (p, 42, h/2 + 2 a, w/2 + 2 a), full: (p, 6, h + 2 b, w + 2 b) with (a, b) = `margins`.
        """
        return self._second(torch.cat([doubled(self._first(half)), full], dim=1))

    def _first(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))

    def _second(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn3(self.conv3(x)))
        return self.conv4(x)
