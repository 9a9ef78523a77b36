"""Augmentation and composition of a whole batch in few operations: on a GPU runs of recipe 3, and of 4 without fused kernels.

What is done to every example is one operation on all of them. What is drawn for some (shadow, noise, the captured background's
jitter and affine) is one operation on those. Only blurs, which few have, are made one picture after the other, since each has a
radius of its own. No operation mixes examples: each comes out equal to the bit alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raymat.data.compositing.composed import Composed, empty_batch, to_unit_
from raymat.data.compositing.host_numbers import HostNumbers, sent_to
from raymat.data.compositing.noise_field import noise_words, normal_field
from raymat.data.compositing.photometric_draws import Jitter, Photometric
from raymat.data.compositing.whole_batch_jitter import (
    JitterPlan,
    blended_jitter,
    hue_place,
    plain_jitter,
)
from raymat.data.compositing.whole_batch_warp import WarpPlan
from raymat.data.photometric import box_blur, sharpen


class WholeBatch:
    """Plan of a batch's augmentation, made on the host, and what carries it out on the device."""

    def __init__(
        self, parameters: Sequence[Photometric], size: tuple[int, int], scale: float
    ) -> None:
        """Plan for pictures of `size` (height, width); `scale`: pixels per pixel of the frame that lengths were drawn for."""
        self._parameters, self._size, self._scale = parameters, size, scale
        self._numbers = numbers = HostNumbers()
        jitters = [p.fgr_jitter for p in parameters] + [p.bgr_jitter for p in parameters]
        self._order = sorted(range(len(jitters)), key=lambda i: hue_place(jitters[i]))
        self._jitter = blended_jitter([jitters[i] for i in self._order], size[0] * size[1], numbers)
        shadows = {i: p.shadow for i, p in enumerate(parameters) if p.shadow is not None}
        self._shadows = shadows
        self._cast = WarpPlan([s.affine for s in shadows.values()], size, numbers)
        self._strengths = numbers.add([s.strength for s in shadows.values()])
        noises = {i: p.noise for i, p in enumerate(parameters) if p.noise is not None}
        self._noisy = list(noises)
        levels = [level for noise in noises.values() for level in (noise.src, noise.bgr)]
        self._levels = numbers.add(levels, -1, 2, 1, 1, 1)
        self._captured, self._captured_jitter = self._plan_captured_jitter()
        moves = {
            i: p.captured_affine for i, p in enumerate(parameters) if p.captured_affine is not None
        }
        self._moved, self._move = list(moves), WarpPlan(list(moves.values()), size, numbers)

    def _plan_captured_jitter(self) -> tuple[list[int], JitterPlan]:
        """Return the examples whose captured background is jittered, sorted for the plan, and the plan."""
        struck: list[tuple[int, Jitter]] = [
            (i, p.captured_jitter)
            for i, p in enumerate(self._parameters)
            if p.captured_jitter is not None
        ]
        struck.sort(key=lambda pair: hue_place(pair[1]))
        plan = plain_jitter([jitter for _, jitter in struck], self._numbers)
        return [i for i, _ in struck], plan

    def compose(
        self,
        pixels: tuple[Tensor, Tensor, Tensor],
        key: tuple[int, Sequence[int]],
        dtype: torch.dtype,
    ) -> Composed:
        """Return the composed batch of the uint8 `pixels` fgr (n, h, w, 3), pha (n, h, w) and bgr (n, h, w, 3); n is at least 1.

        `key`: the run's seed and the examples' numbers, from which the noise is drawn.
        """
        batch = empty_batch(pixels[1], dtype)
        fgr, pha, bgr = pixels
        n = len(pha)
        self._numbers.send(batch.pha)
        to_unit_(batch.pha, pha.unsqueeze(1))
        sources = [*fgr, *bgr]
        x = batch.src.new_empty((2 * n, 3, *self._size))
        to_unit_(x, torch.stack([sources[i] for i in self._order]).permute(0, 3, 1, 2))
        planes = dict(zip(self._order, x.unbind(), strict=True))
        self._sharpen_and_blur_(planes, batch.pha)
        self._jitter.apply_(x)
        torch.stack([planes[i] for i in range(n)], out=batch.fgr)
        torch.stack([planes[n + i] for i in range(n)], out=batch.bgr)
        self._compose_(batch)
        self._add_noise_(batch, key)
        self._capture_(batch.bgr)
        return batch

    def _sharpen_and_blur_(self, planes: dict[int, Tensor], pha: Tensor) -> None:
        for i, p in enumerate(self._parameters):
            background = planes[len(pha) + i]
            if p.pair_blur or p.pair_sharpen:
                pair = torch.cat((planes[i], pha[i]))
                fgr, alpha = self._detailed(pair, p.pair_blur, p.pair_sharpen).split((3, 1))
                planes[i].copy_(fgr)
                pha[i].copy_(alpha)
            if p.bgr_blur or p.bgr_sharpen:
                background.copy_(self._detailed(background, p.bgr_blur, p.bgr_sharpen))

    def _detailed(self, x: Tensor, blur: int | None, sharper: bool) -> Tensor:
        """Return `x` blurred, then sharpened, as drawn."""
        blurred = box_blur(x, (blur or 0) * self._scale)
        return sharpen(blurred, self._scale) if sharper else blurred

    def _compose_(self, batch: Composed) -> None:
        """Compute src = fgr * pha + b * (1 - pha), where b is the background minus the shadow, clamped to 0..1."""
        src, behind, pha = batch.src, batch.bgr, batch.pha
        if self._shadows:
            behind = torch.sub(behind, self._shade(pha), out=src).clamp_(0, 1)
        torch.mul(behind, 1 - pha, out=src).add_(batch.fgr * pha)

    def _shade(self, pha: Tensor) -> Tensor:
        """Return what to subtract from the backgrounds, (n, 1, h, w), for the shadows that `pha` casts."""
        cast = self._cast.apply(_gathered(pha, list(self._shadows)))
        cast.mul_(self._strengths())
        shades = {
            i: box_blur(plane, (shadow.kernel * self._scale - 1) / 2)
            for plane, (i, shadow) in zip(cast, self._shadows.items(), strict=True)
        }
        none = pha.new_zeros(()).expand(pha.shape[1:])
        return torch.stack([shades.get(i, none) for i in range(len(pha))])

    def _add_noise_(self, batch: Composed, key: tuple[int, Sequence[int]]) -> None:
        if not self._noisy:
            return
        seed, numbers = key
        words = np.stack([noise_words(seed, numbers[i], *self._size) for i in self._noisy])
        field = normal_field(sent_to(batch.src.device, torch.from_numpy(words)), *self._size)
        field = field.to(batch.src.dtype).mul_(self._levels())
        struck = [x[i] for i in self._noisy for x in (batch.src, batch.bgr)]
        torch._foreach_add_(struck, list(field.flatten(0, 1)))
        torch._foreach_clamp_min_(struck, 0.0)
        torch._foreach_clamp_max_(struck, 1.0)

    def _capture_(self, bgr: Tensor) -> None:
        """Make the backgrounds the captured ones: jittered, then moved, where that was drawn."""
        if self._captured:
            jittered = _gathered(bgr, self._captured)
            _scatter_(bgr, self._captured, self._captured_jitter.apply_(jittered))
        if self._moved:
            _scatter_(bgr, self._moved, self._move.apply(_gathered(bgr, self._moved)))


def _gathered(x: Tensor, places: Sequence[int]) -> Tensor:
    """Return the pictures of `x` at `places`: themselves where that is all of them in their order, else copies."""
    return x if list(places) == list(range(len(x))) else torch.stack([x[i] for i in places])


def _scatter_(x: Tensor, places: Sequence[int], changed: Tensor) -> None:
    """Put `changed` into the `places` of `x` that it was gathered from."""
    if changed is not x:
        torch._foreach_copy_([x[i] for i in places], list(changed))
