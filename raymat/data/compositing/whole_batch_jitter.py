"""Colour jitter of many pictures at once, each with its own factors and its own order of the four steps.

Pictures are planar float tensors (m, 3, h, w) with values in 0..1, sorted by the place of the hue in their order. So the hue, the
costliest step, is one operation on all of them, and what comes d steps before or after it is an operation on the last or the
first pictures. A picture that has another step there than its neighbours has coefficients that change nothing, to the bit.

The formulas are those of `raymat.data.photometric`: `blended_jitter` is its `jitter_`, `plain_jitter` its `plain_jitter_`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raymat.data.compositing.host_numbers import HostNumbers, OnDevice
from raymat.data.compositing.photometric_draws import Jitter, JitterStep

GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the luma."""


def hue_place(jitter: Jitter) -> int:
    """Return how many steps of a jitter come before its hue: what pictures are sorted by."""
    return jitter.order.index("hue")


@dataclass(frozen=True)
class _Steps:
    """Steps of neighbouring pictures that are taken at once, none of them the hue."""

    pictures: slice
    apply: Callable[[Tensor], None]
    """Changes these pictures in place."""


@dataclass(frozen=True)
class JitterPlan:
    """Jitter of a batch, planned on the host."""

    before: Sequence[_Steps]
    shifts: OnDevice
    """What to add to a pixel's hue for each channel, in sixths of a turn, (m, 3, 1, 1)."""
    after: Sequence[_Steps]

    def apply_(self, x: Tensor) -> Tensor:
        """Jitter the pictures `x` (m, 3, h, w) in place; returns them. The plan's numbers have been sent."""
        for steps in self.before:
            steps.apply(x[steps.pictures])
        _shift_hues_(x, self.shifts())
        for steps in self.after:
            steps.apply(x[steps.pictures])
        return x


_Plan = Callable[[Sequence[tuple[JitterStep, float]], HostNumbers], Callable[[Tensor], None]]


def blended_jitter(jitters: Sequence[Jitter], pixels: int, numbers: HostNumbers) -> JitterPlan:
    """Plan the jitter of sorted pictures of so many pixels as torchvision computes it."""

    def plan(
        steps: Sequence[tuple[JitterStep, float]], numbers: HostNumbers
    ) -> Callable[[Tensor], None]:
        return _blend(steps, pixels, numbers)

    return _planned(jitters, plan, numbers)


def plain_jitter(jitters: Sequence[Jitter], numbers: HostNumbers) -> JitterPlan:
    """Plan the jitter of sorted pictures as kornia 0.4.1 computes it."""
    return _planned(jitters, _plain, numbers)


def _planned(jitters: Sequence[Jitter], plan: _Plan, numbers: HostNumbers) -> JitterPlan:
    places = [hue_place(jitter) for jitter in jitters]
    assert places == sorted(places), "the pictures are not sorted"

    def steps(pictures: slice, distance: int) -> _Steps:
        chosen = list(zip(jitters[pictures], places[pictures], strict=True))
        names = [jitter.order[place + distance] for jitter, place in chosen]
        values = [getattr(jitter, name) for (jitter, _), name in zip(chosen, names, strict=True)]
        return _Steps(pictures, plan(list(zip(names, values, strict=True)), numbers))

    count = len(places)
    late = {d: slice(sum(place < d for place in places), count) for d in (3, 2, 1)}
    early = {d: slice(0, sum(place <= 3 - d for place in places)) for d in (1, 2, 3)}
    shifts = [
        (6 * jitter.hue - own + 3) % 6 - 3 for jitter in jitters for own in (0, 2, -2)
    ]  # fmt: skip
    return JitterPlan(
        before=[steps(at, -d) for d, at in late.items() if at.start < count],
        shifts=numbers.add(shifts, -1, 3, 1, 1),
        after=[steps(at, d) for d, at in early.items() if at.stop],
    )


def _blend(
    steps: Sequence[tuple[JitterStep, float]], pixels: int, numbers: HostNumbers
) -> Callable[[Tensor], None]:
    """Plan blends of each picture with black (brightness), its mean luma (contrast) or its luma (saturation)."""
    names = [name for name, _ in steps]
    weight = numbers.add([1 - factor for _, factor in steps])
    luma = numbers.add([float(name == "saturation") for name in names])
    means = [(name == "contrast") * part / pixels for name in names for part in GREY]
    mean = numbers.add(means, -1, 3)
    black = numbers.add([0.0])

    def apply(x: Tensor) -> None:
        other = black()
        if "contrast" in names:
            # Row by row: a row's sum does not depend on how many pictures there are, nor on the threads.
            sums = x.sum(-1).sum(-1, dtype=torch.float64)
            other = (sums * mean()).sum(1).to(x.dtype).view(-1, 1, 1, 1)
        if "saturation" in names:
            other = torch.addcmul(other, _luma(x), luma())
        torch.lerp(x, other, weight(), out=x).clamp_(0, 1)

    return apply


def _luma(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, dim=1)
    return torch.mul(red, GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _plain(
    steps: Sequence[tuple[JitterStep, float]], numbers: HostNumbers
) -> Callable[[Tensor], None]:
    """Plan steps of which brightness adds, contrast multiplies and saturation is HSV's."""
    names = [name for name, _ in steps]

    def of(wanted: JitterStep, neutral: float) -> list[float]:
        return [factor if name == wanted else neutral for name, factor in steps]

    added = numbers.add([factor - 1 for factor in of("brightness", 1)])
    multiplied = numbers.add(of("contrast", 1))
    stretch = numbers.add(of("saturation", 1))

    def apply(x: Tensor) -> None:
        if "contrast" in names:
            x.mul_(multiplied())
        if "brightness" in names:
            x.add_(added())
        if "contrast" in names or "brightness" in names:
            x.clamp_(0, 1)
        if "saturation" in names:
            _stretch_(x, stretch())

    return apply


def _stretch_(x: Tensor, factors: Tensor) -> None:
    """Multiply the distances of a pixel's components from the largest, by no more than makes the smallest 0."""
    smallest, value = torch.aminmax(x, dim=1, keepdim=True)
    chroma = torch.sub(value, smallest, out=smallest).clamp_min_(torch.finfo(x.dtype).tiny)
    most = torch.div(value, chroma, out=chroma)
    torch.lerp(value, x, torch.minimum(most, factors, out=most), out=x).clamp_(0, 1)


def _shift_hues_(x: Tensor, shifts: Tensor) -> None:
    """Shift each picture's hue as `raymat.data.photometric.hue_` does; see there for the formula."""
    smallest, largest = torch.aminmax(x, dim=1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    hue = torch.add(green, blue).sub_(red).sub_(largest)
    chroma = largest.sub_(smallest)
    scratch = chroma.clamp_min(torch.finfo(x.dtype).tiny)  # without chroma any hue will do
    hue.div_(scratch).add_(2)
    hue.copysign_(torch.sub(green, blue, out=scratch))
    torch.add(hue, shifts, out=x).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
    torch.addcmul(smallest, x, chroma, out=x)
