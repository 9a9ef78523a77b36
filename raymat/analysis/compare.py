"""Compares two states tensor by tensor and value by value, to the bit.

Values whose names say that they tell a time, an attempt or a place are left out (`is_circumstance`): an undisturbed run
equals one that was killed ten times elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from raymat.analysis.layer_changes import LayerChange, by_layer, by_part
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.state_dict import bits_of
from raymat.train.run.selected_weights import read_state, read_weights
from raymat.train.run.weights_reference import parse_reference

TIMES = frozenset(
    [
        "time",
        "times",
        "date",
        "created",
        "started",
        "finished",
        "modified",
        "duration",
        "seconds",
        "age",
    ]
)
ATTEMPTS = frozenset({"attempt", "attempts", "restart", "restarts", "run", "run_id", "pid"})
PLACES = frozenset(
    {"url", "path", "folder", "file", "host", "hosts", "hostname", "node", "ip", "storage"}
    # Options that say where something lies; what lies there is in the digest of the listing and in
    # the weights.
    | {"arithmetic", "config.name", "config.dataset", "config.backgrounds", "config.init"}
)  # fmt: skip
ENDINGS = ("_time", "_seconds", "_at", "_per_second", "_url", "_path", "_host", "_hosts")

Kind = Literal["values", "dtype", "shape", "only in A", "only in B"]


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that is not the same on both sides."""

    name: str
    kind: Kind
    what: str
    """Its shape and dtype, on both sides where they differ."""
    elements: int = 0
    """Number of elements that differ."""
    absolute: float = math.inf
    """Largest |a - b|; infinite where one side is not a number, or where nothing can be subtracted."""
    relative: float = math.inf
    """Largest |a - b| / max(|a|, |b|)."""


@dataclass(frozen=True)
class ValueDifference:
    """A value beside the tensors that differs: its dotted name, and both sides as JSON ("-" for none)."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class DiffResult:
    """The differences between two states."""

    a: str
    b: str
    tensors: int
    """Number of names, on either side."""
    values: int
    different_tensors: tuple[TensorDifference, ...]
    """Largest differences first."""
    different_values: tuple[ValueDifference, ...]
    parts: tuple[LayerChange, ...] = ()
    """In the network's order."""
    layers: tuple[LayerChange, ...] = ()
    notes: tuple[str, ...] = ()
    """Other facts to show, such as newer checkpoints that were passed over."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.different_tensors and not self.different_values


def diff(a_url: str, b_url: str) -> DiffResult:
    """Compare two references (see `raymat.train.run.weights_reference`).

    Holds both in memory. Raises StorageError or WeightsError if one of them cannot be read.
    """
    notes: list[str] = []
    asked = [parse_reference(url) for url in (a_url, b_url)]
    whole = not any(request.is_file or request.ema for request in asked)
    if not whole:
        notes.append("the weights alone are compared")
    (a_name, a), (b_name, b) = (_load(url, whole, notes) for url in (a_url, b_url))
    return compare(a_name, a, b_name, b, tuple(notes), values=whole)


def compare(
    a_name: str,
    a: Snapshot,
    b_name: str,
    b: Snapshot,
    notes: tuple[str, ...] = (),
    values: bool = True,
) -> DiffResult:
    """Compare two states in memory; without `values` their tensors alone."""
    names = a.tensors.keys() | b.tensors.keys()
    tensors = (_compare_tensor(name, a.tensors.get(name), b.tensors.get(name)) for name in names)
    different = sorted(filter(None, tensors), key=lambda d: (-d.absolute, -d.relative, d.name))
    a_values, b_values = (
        dict(flatten({"step": side.step, **side.extra})) if values else {} for side in (a, b)
    )
    value_names = sorted(n for n in a_values.keys() | b_values.keys() if not is_circumstance(n))
    different_values = tuple(
        ValueDifference(n, a_values.get(n, "-"), b_values.get(n, "-"))
        for n in value_names
        if a_values.get(n) != b_values.get(n)
    )
    moved = {d.name for d in different}
    return DiffResult(
        a=a_name,
        b=b_name,
        tensors=len(names),
        values=len(value_names),
        different_tensors=tuple(different),
        different_values=different_values,
        parts=tuple(by_part(a.tensors, b.tensors, moved)),
        layers=tuple(by_layer(a.tensors, b.tensors, moved)),
        notes=notes,
    )


def is_circumstance(name: str) -> bool:
    """Tell whether any part of a dotted name says a time, an attempt or a place."""
    known = TIMES | ATTEMPTS | PLACES
    parts = name.split(".")
    return name in known or any(part in known or part.endswith(ENDINGS) for part in parts)


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield every leaf of a JSON-able value as (dotted name, JSON), in which NaN equals NaN. Empty containers are leaves."""
    items: Any = None
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    if not items:
        yield name, json.dumps(value)
        return
    for key, item in items:
        yield from flatten(item, f"{name}.{key}" if name else str(key))


def _load(what: str, whole: bool, notes: list[str]) -> tuple[str, Snapshot]:
    """Return a name for `what` and its state; if not `whole`, its weights alone, under their published names."""
    passed_over: list[str] = []
    on_skip = lambda _, reason: passed_over.append(reason)  # noqa: E731
    if whole:
        state = read_state(what, on_skip=on_skip)
        name, snapshot = f"{state.run_url} {state.checkpoint}", state.snapshot
    else:
        found = read_weights(what, on_skip=on_skip)
        name = f"{found.run_url} {found.checkpoint}" if found.checkpoint else found.what
        name += " (average)" if found.ema else ""
        snapshot = Snapshot(0, found.weights)
    notes += [f"{name.split()[0]}: {reason}" for reason in passed_over]
    return name, snapshot


def _compare_tensor(name: str, a: Tensor | None, b: Tensor | None) -> TensorDifference | None:
    """Compare one tensor; None if both are there and equal to the bit, with the same shape and dtype."""
    if a is None or b is None:
        there = a if a is not None else b
        assert there is not None
        return TensorDifference(name, "only in B" if a is None else "only in A", _describe(there))
    if a.dtype != b.dtype or a.shape != b.shape:
        kind: Kind = "dtype" if a.dtype != b.dtype else "shape"
        return TensorDifference(name, kind, f"{_describe(a)} -> {_describe(b)}")
    unequal = (bits_of(a) != bits_of(b)).any(dim=-1)
    count = int(unequal.sum())
    if not count:
        return None
    absolute, relative = _distances(a.reshape(-1)[unequal], b.reshape(-1)[unequal])
    return TensorDifference(name, "values", _describe(a), count, absolute, relative)


def _distances(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Return the largest absolute and relative distance of elements that differ in a bit: 0 for 0.0 and -0.0."""
    x, y = a.double(), b.double()
    gap = torch.where(x == y, 0.0, (x - y).abs())
    gap = gap.nan_to_num(nan=math.inf, posinf=math.inf)
    if a.dtype == torch.int64:
        # Beyond 2**53 floating point may not tell counters apart whose bits differ: they are at least 1 apart.
        gap = gap.clamp(min=1.0)
    scale = torch.maximum(x.abs(), y.abs()).nan_to_num(nan=math.inf)
    ratio = torch.where(
        gap.isinf(), math.inf, gap / scale.clamp(min=torch.finfo(torch.float64).tiny)
    )
    return float(gap.max()), float(ratio.max())


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}[{','.join(map(str, tensor.shape))}]"
