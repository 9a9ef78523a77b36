"""Whether two runs or checkpoints hold the same state, to the bit, and if not, where they differ.

Compared are every tensor and every value beside the tensors, except those whose name says that they
tell a time, an attempt or a place (`is_circumstance`): an undisturbed run and one that was killed
ten times elsewhere are equal.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

import torch
from torch import Tensor

from raymat.checkpoint.find import newest
from raymat.checkpoint.shards import read_checkpoint
from raymat.checkpoint.snapshot import Snapshot
from raymat.checkpoint.store import Store, split_run_url
from raymat.errors import CheckpointError, ConfigError, RaymatError

EQUAL, DIFFERENT, FAILED = 0, 1, 2

USAGE = """usage: raymat diff A B

Compare two runs (their newest committed checkpoint) or checkpoints, tensor by tensor.
A and B: STORAGE/NAME or STORAGE/NAME/checkpoints/step-..., any fsspec URL.
Exit code: 0 if equal to the bit, 1 if different, 2 if they could not be compared."""

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
        """For a terminal: both sides, up to `limit` differences of each kind, and the result as the
        last line."""
        lines = [f"A  {self.a}", f"B  {self.b}", *(f"note: {note}" for note in self.notes)]
        lines += _tensor_table(self.different_tensors, limit)
        lines += _value_table(self.different_values, limit)
        return "\n".join([*lines, self.line])


def diff(a_url: str, b_url: str, options: Mapping[str, Any] | None = None) -> DiffResult:
    """Compare two runs (their newest committed checkpoint) or checkpoints. `options` are those of
    `Store.open`.

    Both are held in memory. Raises StorageError or CheckpointError if one of them cannot be read.
    """
    notes: list[str] = []
    a_name, a = _load(a_url, options, notes)
    b_name, b = _load(b_url, options, notes)
    return compare(a_name, a, b_name, b, tuple(notes))


def main(argv: Sequence[str]) -> int:
    """`raymat diff A B`: see `report`. Raises ConfigError for other arguments."""
    if list(argv) in (["-h"], ["--help"]):
        print(USAGE)
        return EQUAL
    if len(argv) != 2 or any(word.startswith("-") for word in argv):
        raise ConfigError(f"expected two URLs: raymat diff A B, got {' '.join(argv) or 'none'}")
    return report(*argv)


def report(a_url: str, b_url: str, *, limit: int = 20, out: TextIO | None = None) -> int:
    """Print the comparison; 0 if both are equal to the bit, 1 if not, 2 if they could not be compared."""
    try:
        result = diff(a_url, b_url)
    except RaymatError as error:
        print(f"raymat: error: cannot compare: {error.line}", file=sys.stderr)
        return FAILED
    print(result.text(limit), file=out or sys.stdout)
    return EQUAL if result.equal else DIFFERENT


def compare(
    a_name: str, a: Snapshot, b_name: str, b: Snapshot, notes: tuple[str, ...] = ()
) -> DiffResult:
    """Compare two states that are at hand."""
    names = a.tensors.keys() | b.tensors.keys()
    tensors = (_compare_tensor(name, a.tensors.get(name), b.tensors.get(name)) for name in names)
    different = sorted(filter(None, tensors), key=lambda d: (-d.absolute, -d.relative, d.name))
    a_values = dict(flatten({"step": a.step, **a.extra}))
    b_values = dict(flatten({"step": b.step, **b.extra}))
    value_names = sorted(n for n in a_values.keys() | b_values.keys() if not is_circumstance(n))
    values = tuple(
        ValueDifference(n, a_values.get(n, "-"), b_values.get(n, "-"))
        for n in value_names
        if a_values.get(n) != b_values.get(n)
    )
    return DiffResult(a_name, b_name, len(names), len(value_names), tuple(different), values, notes)


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


def _load(url: str, options: Mapping[str, Any] | None, notes: list[str]) -> tuple[str, Snapshot]:
    """What to call it, and its state."""
    storage, name, checkpoint = split_run_url(url)
    store = Store.open(storage, name, options=options)
    if checkpoint is not None:
        return f"{store.url} {checkpoint}", read_checkpoint(store, checkpoint)
    skipped: list[str] = []
    found = newest(store, on_skip=lambda _, reason: skipped.append(reason))
    if found is None:
        why = f" ({len(skipped)} cannot be used, the newest: {skipped[0]})" if skipped else ""
        raise CheckpointError(f"there is no committed checkpoint in {store.url}{why}")
    notes += [f"{store.url}: {reason}" for reason in skipped]
    return f"{store.url} {found[0]}", found[1]


def _compare_tensor(name: str, a: Tensor | None, b: Tensor | None) -> TensorDifference | None:
    """None if both are there and equal to the bit, with the same shape and dtype."""
    if a is None or b is None:
        there = a if a is not None else b
        assert there is not None
        return TensorDifference(name, "only in B" if a is None else "only in A", _describe(there))
    if a.dtype != b.dtype or a.shape != b.shape:
        kind: Kind = "dtype" if a.dtype != b.dtype else "shape"
        return TensorDifference(name, kind, f"{_describe(a)} -> {_describe(b)}")
    unequal = (_bits(a) != _bits(b)).any(dim=-1)
    count = int(unequal.sum())
    if not count:
        return None
    absolute, relative = _distances(a.reshape(-1)[unequal], b.reshape(-1)[unequal])
    return TensorDifference(name, "values", _describe(a), count, absolute, relative)


def _bits(tensor: Tensor) -> Tensor:
    """uint8 (elements, bytes of one)."""
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).reshape(flat.numel(), flat.element_size())


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


def _tensor_table(differences: tuple[TensorDifference, ...], limit: int) -> list[str]:
    if not differences:
        return []
    rows = [("tensor", "", "elements", "max abs", "max rel")]
    for d in differences[:limit]:
        numbers = (str(d.elements), f"{d.absolute:.3g}", f"{d.relative:.3g}")
        rows.append((d.name, d.what, *(numbers if d.kind == "values" else (d.kind, "", ""))))
    return ["", *_columns(rows), *_more(len(differences), limit, "tensors"), ""]


def _value_table(differences: tuple[ValueDifference, ...], limit: int) -> list[str]:
    if not differences:
        return []
    rows = [("value", "A", "B")] + [(d.name, _short(d.a), _short(d.b)) for d in differences[:limit]]
    return ["", *_columns(rows), *_more(len(differences), limit, "values"), ""]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _more(count: int, limit: int, what: str) -> list[str]:
    return [f"... and {count - limit} more {what}"] if count > limit else []


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
