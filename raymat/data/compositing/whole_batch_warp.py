"""Small affine warps of many pictures at once, each by its own map, as `raymat.data.photometric.affine_warp` moves one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from raymat.data.compositing.host_numbers import HostNumbers
from raymat.data.compositing.photometric_draws import Affine
from raymat.data.photometric import inverse_map


class WarpPlan:
    """Warp of k pictures of one size, planned on the host."""

    def __init__(
        self, affines: Sequence[Affine], size: tuple[int, int], numbers: HostNumbers
    ) -> None:
        """Plan for pictures of `size` (height, width)."""
        height, width = size
        maps = [inverse_map(affine, width, height) for affine in affines]
        # grid_sample wants places as -1..1 over the picture's width and height.
        sides = (width, height)
        pairs = [tuple(zip(rows, sides, strict=True)) for rows in maps]
        by_x = [2 * row[0] / side for pair in pairs for row, side in pair]
        by_y = [2 * row[1] / side for pair in pairs for row, side in pair]
        fixed = [2 * row[2] / side for pair in pairs for row, side in pair]
        self._columns = numbers.add(_centred(width), 1, 1, -1, 1)
        self._rows = numbers.add(_centred(height), 1, -1, 1, 1)
        self._by_x, self._by_y, self._fixed = (
            numbers.add(values, -1, 1, 1, 2) for values in (by_x, by_y, fixed)
        )

    def apply(self, x: Tensor) -> Tensor:
        """Return the pictures `x` (k, c, h, w) moved: bilinear, 0 outside of them. The plan's numbers have been sent."""
        along = self._columns() * self._by_x()
        down = (self._rows() * self._by_y()).add_(self._fixed())
        moved = F.grid_sample(
            x, along + down, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        return moved.clamp_(0, 1)


def _centred(count: int) -> list[float]:
    """Return the pixel centres along a side of `count` pixels, measured from its middle."""
    return [i + 0.5 - count / 2 for i in range(count)]
