"""Which pictures of a batch the fused kernels work on, and with which numbers: planned on the host, without Triton.

A table has a row of floats for each picture that a kernel works on. Pictures that are blurred or sharpened lie in float planes
(p, h, w) while the kernels run, first four for each such foreground with its alpha, then three for each such background.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from raymat.data.compositing.host_numbers import HostNumbers
from raymat.data.compositing.photometric_draws import Affine, Jitter, Photometric
from raymat.data.photometric import inverse_map

_STEPS = ("brightness", "contrast", "saturation", "hue")
_NO_JITTER = [0.0] * 10
_NONE = -1.0
"""The place of what an example does not have."""


@dataclass(frozen=True)
class Table:
    """Rows of numbers for a kernel."""

    rows: int
    on_device: Callable[[], Tensor]
    """Gives all of them, one after the other, once the numbers were sent."""


@dataclass(frozen=True)
class Passes:
    """A blur's two passes over the same planes: across, from where they are to planes between; and down, from there back."""

    across: Table
    down: Table


class FusedPlan:
    """What the kernels do to a batch."""

    def __init__(
        self,
        parameters: Sequence[Photometric],
        size: tuple[int, int],
        scale: float,
        numbers: HostNumbers,
    ) -> None:
        """Plan for pictures of `size` (height, width); the tables' rows are added to `numbers`.

        `scale`: pixels per pixel of the frame that lengths were drawn for.
        """
        self._parameters, self._size, self._numbers = parameters, size, numbers
        drawn = list(enumerate(parameters))
        pairs = [i for i, p in drawn if p.pair_blur or p.pair_sharpen]
        backgrounds = [i for i, p in drawn if p.bgr_blur or p.bgr_sharpen]
        self.fgr_planes = {i: 4 * k for k, i in enumerate(pairs)}
        """The first plane of the foreground, by example."""
        self.bgr_planes = {i: 4 * len(pairs) + 3 * k for k, i in enumerate(backgrounds)}
        """The first plane of the background, by example."""
        self.planes = 4 * len(pairs) + 3 * len(backgrounds)
        self.shadows = {i: p.shadow for i, p in drawn if p.shadow is not None}
        """By example, in the order of their planes."""
        self.noisy = [i for i, p in drawn if p.noise is not None]
        """Examples, in the order of their fields' words."""
        self.moved = {i: p.captured_affine for i, p in drawn if p.captured_affine is not None}
        """By example, in the order in which backgrounds that are to be moved are kept."""
        self.table = self._added([self._row(i) for i, _ in drawn])
        self.detailed = self._added(self._details())
        """Pictures that become planes."""
        self.blurs, self.sharpens = self._blurs(scale), self._sharpens(scale)
        self.casts = self._added([self._cast(i) for i in self.shadows])
        radii = [(shadow.kernel * scale - 1) / 2 for shadow in self.shadows.values()]
        self.softens = self._passes(list(enumerate(radii)))
        moves = [[i, *self._map(affine)] for i, affine in self.moved.items()]
        self.moves = self._added(moves)

    def _row(self, i: int) -> list[float]:
        """Return an example's row of `table`, as `fused_kernels` reads it."""
        p = self._parameters[i]
        captured, noise = p.captured_jitter, p.noise
        return [
            *_jitter(p.fgr_jitter),
            *_jitter(p.bgr_jitter),
            *(_NO_JITTER if captured is None else _jitter(captured)),
            float(captured is not None),
            _place(self.noisy, i),
            *((0.0, 0.0) if noise is None else (noise.src, noise.bgr)),
            float(self.fgr_planes.get(i, _NONE)),
            float(self.bgr_planes.get(i, _NONE)),
            _place(list(self.shadows), i),
            _place(list(self.moved), i),
        ]

    def _details(self) -> list[list[float]]:
        pairs = [[i, plane, 1.0] for i, plane in self.fgr_planes.items()]
        return pairs + [[i, plane, 0.0] for i, plane in self.bgr_planes.items()]

    def _blurs(self, scale: float) -> Passes:
        radii = {
            plane + c: (self._parameters[i].pair_blur or 0) * scale
            for i, plane in self.fgr_planes.items()
            for c in range(4)
        } | {
            plane + c: (self._parameters[i].bgr_blur or 0) * scale
            for i, plane in self.bgr_planes.items()
            for c in range(3)
        }
        return self._passes(list(radii.items()))

    def _sharpens(self, scale: float) -> Passes:
        p = self._parameters
        pairs = [first for i, first in self.fgr_planes.items() if p[i].pair_sharpen]
        backgrounds = [first for i, first in self.bgr_planes.items() if p[i].bgr_sharpen]
        planes = [first + c for first in pairs for c in range(4)]
        planes += [first + c for first in backgrounds for c in range(3)]
        return self._passes([(plane, scale) for plane in planes])

    def _cast(self, i: int) -> list[float]:
        """Return the row of a shadow: its alpha as it was read or its plane, its strength, and where it falls."""
        alpha = self.fgr_planes[i] + 3.0 if i in self.fgr_planes else _NONE
        return [i, alpha, self.shadows[i].strength, *self._map(self.shadows[i].affine)]

    def _map(self, affine: Affine) -> list[float]:
        height, width = self._size
        to_x, to_y = inverse_map(affine, width, height)
        return [*to_x, *to_y]

    def _passes(self, radii: Sequence[tuple[int, float]]) -> Passes:
        """Return the blur of planes, each with its radius; of radius 0 there is none."""
        blurred = [(plane, radius) for plane, radius in radii if radius > 0]
        return Passes(
            across=self._added([[plane, k, r] for k, (plane, r) in enumerate(blurred)]),
            down=self._added([[k, plane, r] for k, (plane, r) in enumerate(blurred)]),
        )

    def _added(self, rows: Sequence[Sequence[float]]) -> Table:
        values = [float(value) for row in rows for value in row]
        return Table(len(rows), self._numbers.add(values, -1))


def _jitter(jitter: Jitter) -> list[float]:
    """Return the order of the steps, three factors, and what is added to the hue for each channel, in sixths of a turn."""
    order = [float(_STEPS.index(name)) for name in jitter.order]
    shifts = [(6 * jitter.hue - own + 3) % 6 - 3 for own in (0, 2, -2)]
    return [*order, jitter.brightness, jitter.contrast, jitter.saturation, *shifts]


def _place(chosen: Sequence[int], i: int) -> float:
    return float(chosen.index(i)) if i in chosen else _NONE
