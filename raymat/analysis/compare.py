"""Two states, tensor by tensor, to the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from raymat.analysis.layer_changes import LayerChange, by_layer, by_part
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.state_dict import bits_of
from raymat.console import columns
from raymat.train.run.weights_reference import parse_reference, read_state, read_weights

TIMES = frozenset(
    {
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
    }
)


ATTEMPTS = frozenset({"attempt", "attempts", "restart", "restarts", "run", "run_id", "pid"})


PLACES = frozenset(
    {"url", "path", "folder", "file", "host", "hosts", "hostname", "node", "ip", "storage"}
    # Options that say where something lies; what lies there is in the digest of the listing and in
    # the weights.
    | {"config.name", "config.dataset", "config.backgrounds", "config.init"}
)  # fmt: skip


ENDINGS = ("_time", "_seconds", "_at", "_per_second", "_url", "_path", "_host", "_hosts")


Kind = Literal["values", "dtype", "shape", "only in A", "only in B"]


@dataclass(frozen=True)
class TensorDifference:
    """One tensor that is not the same on both sides."""

    name: str
    kind: Kind
    what: str
    """Its shape and dtype, on both sides where they differ."""
    elements: int = 0
    """How many elements differ."""
    absolute: float = math.inf
    """The largest |a - b|; infinite where one side is not a number, or where nothing can be
    subtracted."""
    relative: float = math.inf
    """The largest |a - b| / max(|a|, |b|)."""


@dataclass(frozen=True)
class ValueDifference:
    """One value beside the tensors: its dotted name, and both sides as JSON ("-" where there is
    none)."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class DiffResult:
    """What `diff` found."""

    a: str
    b: str
    tensors: int
    """How many names there are, on either side."""
    values: int
    different_tensors: tuple[TensorDifference, ...]
    """Worst first."""
    different_values: tuple[ValueDifference, ...]
    parts: tuple[LayerChange, ...] = ()
    """In the network's order."""
    layers: tuple[LayerChange, ...] = ()
    notes: tuple[str, ...] = ()
    """What else the reader should know: newer checkpoints that were passed over."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.different_tensors and not self.different_values

    @property
    def line(self) -> str:
        """The result in one line."""
        if self.equal:
            return f"equal to the bit: {self.tensors} tensors, {self.values} values"
        return (
            f"different: {len(self.different_tensors)} of {self.tensors} tensors, "
            f"{len(self.different_values)} of {self.values} values"
        )

    def text(self, limit: int = 20) -> str:
        """For a terminal: both sides, what changed by part, up to `limit` differences of each kind, and the
        result as the last line."""
        lines = [f"A  {self.a}", f"B  {self.b}", *(f"note: {note}" for note in self.notes)]
        if self.different_tensors:
            lines += _part_table(self.parts)
        lines += _tensor_table(self.different_tensors, limit)
        lines += _value_table(self.different_values, limit)
        return "\n".join([*lines, self.line])


def diff(a_url: str, b_url: str, options: Mapping[str, Any] | None = None) -> DiffResult:
    """Compare what two texts mean, as `raymat.train.run.weights_reference` reads them. `options` are those of `Store.open`.

    Both are held in memory. Raises StorageError or WeightsError if one of them cannot be read.
    """
    notes: list[str] = []
    asked = [parse_reference(url) for url in (a_url, b_url)]
    whole = not any(request.is_file or request.ema for request in asked)
    if not whole:
        notes.append("the weights alone are compared")
    (a_name, a), (b_name, b) = (_load(url, whole, options, notes) for url in (a_url, b_url))
    return compare(a_name, a, b_name, b, tuple(notes), values=whole)


def compare(
    a_name: str,
    a: Snapshot,
    b_name: str,
    b: Snapshot,
    notes: tuple[str, ...] = (),
    values: bool = True,
) -> DiffResult:
    """Compare two states that are at hand; without `values` their tensors alone."""
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
    """Whether a dotted name tells a time, an attempt or a place, in any of its parts."""
    known = TIMES | ATTEMPTS | PLACES
    parts = name.split(".")
    return name in known or any(part in known or part.endswith(ENDINGS) for part in parts)


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a JSON-able value as (dotted name, JSON); NaN equals NaN in it. Empty
    containers are leaves."""
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


def _load(
    what: str, whole: bool, options: Mapping[str, Any] | None, notes: list[str]
) -> tuple[str, Snapshot]:
    """What to call it, and its state; if not `whole`, its weights alone, under their published names."""
    passed_over: list[str] = []
    on_skip = lambda _, reason: passed_over.append(reason)  # noqa: E731
    if whole:
        state = read_state(what, on_skip=on_skip, options=options)
        name, snapshot = f"{state.run_url} {state.checkpoint}", state.snapshot
    else:
        found = read_weights(what, on_skip=on_skip, options=options)
        name = f"{found.run_url} {found.checkpoint}" if found.checkpoint else found.what
        name += " (average)" if found.ema else ""
        snapshot = Snapshot(0, found.weights)
    notes += [f"{name.split()[0]}: {reason}" for reason in passed_over]
    return name, snapshot


def _compare_tensor(name: str, a: Tensor | None, b: Tensor | None) -> TensorDifference | None:
    """None if both are there and equal to the bit, with the same shape and dtype."""
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
    """The largest absolute and relative distance of elements that differ in a bit: 0 for 0.0 and
    -0.0."""
    x, y = a.double(), b.double()
    gap = torch.where(x == y, 0.0, (x - y).abs())
    gap = gap.nan_to_num(nan=math.inf, posinf=math.inf)
    if a.dtype == torch.int64:
        # Counters beyond 2**53 are told apart by bits, not by floating point: at least 1 apart they
        # are.
        gap = gap.clamp(min=1.0)
    scale = torch.maximum(x.abs(), y.abs()).nan_to_num(nan=math.inf)
    ratio = torch.where(
        gap.isinf(), math.inf, gap / scale.clamp(min=torch.finfo(torch.float64).tiny)
    )
    return float(gap.max()), float(ratio.max())


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}[{','.join(map(str, tensor.shape))}]"


def _part_table(parts: Sequence[LayerChange]) -> list[str]:
    rows = [("part", "tensors", "differ", "|B - A|", "/ |A|", "cosine", "only in A", "only in B")]
    for p in parts:
        cosine = "-" if math.isnan(p.cosine) else f"{p.cosine:.6f}"
        numbers = (f"{p.absolute:.3g}", f"{p.relative:.3g}", cosine)
        counts = (str(p.tensors), str(p.differ))
        rows.append((p.name, *counts, *numbers, str(p.only_a or "-"), str(p.only_b or "-")))
    return ["", *columns(rows).splitlines()]


def _tensor_table(differences: tuple[TensorDifference, ...], limit: int) -> list[str]:
    if not differences:
        return []
    rows = [("tensor", "", "elements", "max abs", "max rel")]
    for d in differences[:limit]:
        numbers = (str(d.elements), f"{d.absolute:.3g}", f"{d.relative:.3g}")
        rows.append((d.name, d.what, *(numbers if d.kind == "values" else (d.kind, "", ""))))
    return ["", *columns(rows).splitlines(), *_more(len(differences), limit, "tensors"), ""]


def _value_table(differences: tuple[ValueDifference, ...], limit: int) -> list[str]:
    if not differences:
        return []
    rows = [("value", "A", "B")] + [(d.name, _short(d.a), _short(d.b)) for d in differences[:limit]]
    return ["", *columns(rows).splitlines(), *_more(len(differences), limit, "values"), ""]


def _more(count: int, limit: int, what: str) -> list[str]:
    return [f"... and {count - limit} more {what}"] if count > limit else []


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
