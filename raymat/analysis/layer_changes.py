"""Measures how far two sets of tensors are apart, by part of the network and by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raymat.checkpoint.state_dict import EMA, MODEL, OPTIMIZER
from raymat.model.matting import PARTS

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Last components of the names of batch-norm statistics, which count to no part since the optimizer does not move them."""


@dataclass(frozen=True)
class LayerChange:
    """The change of a set of tensors from A to B. Norms are over its floating-point tensors of the same shape on both sides."""

    name: str
    tensors: int
    """Number of names, on either side."""
    differ: int
    """How many of those on both sides differ."""
    only_a: int
    only_b: int
    absolute: float
    """|B - A|, the Euclidean norm."""
    relative: float
    """|B - A| / |A|; infinite for |A| = 0 unless B is also 0."""
    cosine: float
    """Of the angle between A and B as vectors; NaN if one is 0."""


def by_part(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], different: Collection[str]
) -> list[LayerChange]:
    """Return the change of each part of each kind of tensor (weights, average, moments), in the network's order.

    `different`: names of the tensors that are not the same to the bit.
    """
    sets = {name: part_of(name) for name in {**a, **b}}
    return _changes(a, b, sets, _part_rank, different)


def by_layer(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], different: Collection[str]
) -> list[LayerChange]:
    """Return the change of each module with weights, in the network's order; of checkpoints, the network's weights alone."""
    names = {**a, **b}
    wanted = [n for n in names if n.startswith(MODEL)] or list(names)
    layers = {
        name: name.removeprefix(MODEL).rpartition(".")[0] or name.removeprefix(MODEL)
        for name in wanted
        if not name.endswith(STATISTICS)
    }
    return _changes(a, b, layers, _layer_rank, different)


def part_of(name: str) -> str:
    """Name a tensor's part: "model backbone", "optimizer exp_avg aspp", or just "decoder" in a weights file."""
    kind, rest = "", name
    for prefix in (MODEL, EMA, OPTIMIZER):
        if name.startswith(prefix):
            kind, rest = prefix.rstrip("/"), name.removeprefix(prefix)
    if kind == OPTIMIZER.rstrip("/") and "/" in rest:
        moment, _, rest = rest.partition("/")
        kind = f"{kind} {moment}"
    first = rest.split(".")[0]
    part = first if first in PARTS else "other"
    return f"{kind} {'statistics' if rest.endswith(STATISTICS) else part}".strip()


def _changes(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    sets: Mapping[str, str],
    rank: Callable[[str], Any],
    different: Collection[str],
) -> list[LayerChange]:
    members: dict[str, list[str]] = {}
    for name in sorted(sets):
        members.setdefault(sets[name], []).append(name)
    return [_change(label, members[label], a, b, different) for label in sorted(members, key=rank)]


def _change(
    label: str,
    names: Sequence[str],
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    different: Collection[str],
) -> LayerChange:
    both = [name for name in names if name in a and name in b]
    aa = bb = ab = gap = 0.0
    for name in both:
        x, y = a[name], b[name]
        if x.shape == y.shape and x.is_floating_point() and y.is_floating_point():
            x, y = x.reshape(-1).double(), y.reshape(-1).double()
            aa += float(x @ x)
            bb += float(y @ y)
            ab += float(x @ y)
            gap += float((y - x).square().sum())
    return LayerChange(
        name=label,
        tensors=len(names),
        differ=sum(name in different for name in both),
        only_a=sum(name not in b for name in names),
        only_b=sum(name not in a for name in names),
        absolute=math.sqrt(gap),
        relative=math.sqrt(gap / aa) if aa else (math.inf if gap else 0.0),
        cosine=_cosine(aa, bb, ab),
    )


def _cosine(aa: float, bb: float, ab: float) -> float:
    found = ab / (math.sqrt(aa) * math.sqrt(bb)) if aa and bb else math.nan
    return found if math.isnan(found) else max(-1.0, min(1.0, found))


def _part_rank(label: str) -> tuple[int, str, int]:
    kind, _, part = label.rpartition(" ")
    kinds, parts = ["", "model", "ema"], [*PARTS, "statistics", "other"]
    return (kinds.index(kind) if kind in kinds else len(kinds), kind, parts.index(part))


def _layer_rank(label: str) -> tuple[int, list[tuple[int, str]]]:
    """Rank by part, then by name with numbers as numbers: features.2 before features.10."""
    parts = list(PARTS)
    first = label.split(".")[0]
    words = [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"\.", label)]
    return (parts.index(first) if first in parts else len(parts), words)
