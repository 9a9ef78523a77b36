"""Lineage of a run: where it had ended before it was extended, and which datasets it had.

A run can be extended and its dataset can grow. What a step trains on then depends on where that happened, so it is
recorded in `run.json` and in each checkpoint: step k stays a pure function of (seed, lineage, k).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypedDict

from raymat.errors import DataError
from raymat.storage.fields import Count, Positive, parse_fields


@dataclass(frozen=True)
class Steps:
    """Mapping between steps and examples: `batch_size` examples a step, without an end.

    Args:
        ends: numbers of examples, rising, at which the run had ended and from which it went on. The step before each
            may be smaller, and the next one starts there.
    """

    batch_size: int
    ends: tuple[int, ...] = ()

    def examples(self, step: int) -> int:
        """Return the number of examples consumed after `step` completed steps."""
        begin = 0
        for end in self.ends:
            steps = -(-(end - begin) // self.batch_size)
            if step <= steps:
                return min(begin + step * self.batch_size, end)
            begin, step = end, step - steps
        return begin + step * self.batch_size

    def count(self, examples: int) -> int:
        """Return the number of steps that consume `examples`; the last one may be cut."""
        begin = steps = 0
        for end in self.ends:
            if end >= examples:
                break
            steps += -(-(end - begin) // self.batch_size)
            begin = end
        return steps - (begin - examples) // self.batch_size


@dataclass(frozen=True)
class DatasetSpan:
    """Span of examples, from the previous span's end to `end` (excluded), of a dataset that has grown since.

    Passes are never cut: a span is a whole number of them, perhaps none.
    """

    end: Count
    pairs: Positive
    backgrounds: Positive
    listing: str
    """The digest of the dataset's listing."""


class _Stored(TypedDict):
    """A lineage as it is stored."""

    eras: tuple[DatasetSpan, ...]
    ends: tuple[Count, ...]
    valid_since: Count


@dataclass(frozen=True)
class Lineage:
    """History of a run that was extended or given more data."""

    spans: tuple[DatasetSpan, ...] = ()
    """Spans of the datasets before the present one, oldest first; their ends never fall."""
    ends: tuple[int, ...] = ()
    """Where the run had ended and went on, in examples, rising."""
    valid_since: int = 0
    """Step up to which validations used another validation set than the later ones."""

    @property
    def start(self) -> int:
        """The first example of the present dataset."""
        return self.spans[-1].end if self.spans else 0

    def first_pairs(self, pairs: int) -> int:
        """Return the number of pairs that the run was begun with; `pairs`: the present number."""
        return self.spans[0].pairs if self.spans else pairs

    def listings(self, examples: int, listing: str) -> list[tuple[int, str]]:
        """Return (first example, listing's digest) of each dataset that the first `examples` came from; `listing`:
        the present one's."""
        starts = [0, *(span.end for span in self.spans)]
        listings = [*(span.listing for span in self.spans), listing]
        stops = [*starts[1:], examples]
        return [
            (start, listed)
            for start, stop, listed in zip(starts, stops, listings, strict=True)
            if start < min(stop, examples)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the lineage as JSON-able values."""
        return {
            "eras": [asdict(span) for span in self.spans],
            "ends": list(self.ends),
            "valid_since": self.valid_since,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any] | None) -> Lineage:
        """Parse what `to_dict` returned, without fields that it does not know; None, which older runs have, is an empty lineage.

        Raises:
            DataError: it lacks a field, or one has another type.
        """
        if stored is None:
            return cls()
        try:
            found = parse_fields(_Stored, stored)
        except ValueError as error:
            raise DataError(f"the run's lineage is damaged ({error})") from error
        return cls(spans=found["eras"], ends=found["ends"], valid_since=found["valid_since"])


NO_LINEAGE = Lineage()
"""Lineage of a run that was neither extended nor given more data."""
