"""Averages of weights, and the greedy choice of what to average.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", ICML 2022: their uniform soup, and their greedy one (recipe 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raymat.config.sections import Mode
from raymat.errors import WeightsError


class WeightSum:
    """A sum of networks' floating-point tensors in float64, without the counters of batches."""

    def __init__(self, weights: Mapping[str, Tensor], what: str) -> None:
        self.what = what
        self.count = 1
        self._sum = {n: t.double() for n, t in weights.items() if t.is_floating_point()}

    def add(self, weights: Mapping[str, Tensor], what: str) -> None:
        """Add a network. Raises WeightsError if its names and shapes are not those of the first."""
        for name, tensor in self._matching(weights, what).items():
            self._sum[name] += tensor
        self.count += 1

    @torch.no_grad()
    def mean_into(
        self, own: Mapping[str, Tensor], more: Mapping[str, Tensor] | None = None, what: str = ""
    ) -> None:
        """Copy the mean into a network's state dict `own`; `more`: a network that counts this time, without being added."""
        extra = self._matching(more, what) if more is not None else {}
        count = self.count + (more is not None)
        for name, total in self._sum.items():
            own[name].copy_((total + extra[name] if extra else total) / count)

    def _matching(self, weights: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        found = {n: t for n, t in weights.items() if t.is_floating_point()}
        odd = sorted(found.keys() ^ self._sum.keys())
        odd += [n for n, t in found.items() if n in self._sum and t.shape != self._sum[n].shape]
        if odd:
            raise WeightsError(
                f"{what} is another network than {self.what}, they cannot be averaged: {len(odd)} tensors differ, the "
                f"first {odd[0]}"
            )
        return found


@dataclass(frozen=True)
class Trial:
    """How one candidate of the greedy choice fared."""

    name: str
    alone: float
    """The metric of the candidate by itself."""
    together: float
    """The metric of the average of what was taken before and the candidate."""
    taken: bool


def greedy(
    names: Iterable[str],
    alone: Callable[[str], float],
    together: Callable[[str], float],
    take: Callable[[str], None],
    mode: Mode = "min",
) -> list[Trial]:
    """Take, best first, each candidate with which the average is at least as good as without it.

    `alone` measures a candidate, `together` the average of all that `take` was called for and one more; NaN is worse
    than any number. Equal candidates are tried by name, so the order of `names` does not matter.
    """
    sign = 1.0 if mode == "min" else -1.0

    def cost(value: float) -> float:
        return math.inf if math.isnan(value) else sign * value

    found = {name: alone(name) for name in sorted(set(names))}
    trials: list[Trial] = []
    best = math.inf
    for name in sorted(found, key=lambda name: (cost(found[name]), name)):
        value = together(name)
        taken = not trials or cost(value) <= best
        if taken:
            best = cost(value)
            take(name)
        trials.append(Trial(name, found[name], value, taken))
    return trials
