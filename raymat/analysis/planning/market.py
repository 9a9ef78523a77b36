"""When spot machines are there: as a recording has it, or by rates."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raymat.errors import ConfigError, StorageError
from raymat.storage.faults import backend_errors, classify
from raymat.storage.fields import Count, Finite, parse_fields, parse_object
from raymat.storage.input_files import read_file
from raymat.storage.urls import redact

LEAST_GAP = 1.0
"""Seconds between two counts of a recording."""
MOST_CHANGES = 100_000
"""Of the number of machines, in one draw: of more a plan would take minutes."""


@dataclass(frozen=True)
class Change:
    """From `at` on (seconds since the beginning) so many spot machines are there; the first is at 0."""

    at: float
    machines: int
    noticed: bool = False
    """Whether machines that go said so two minutes before."""


class Market(Protocol):
    """Where spot machines come from."""

    def changes(self, wanted: int, seed: int) -> Iterator[Change]:
        """Yield how many of `wanted` machines are there, without end; the same for the same seed."""

    def unnoticed_per_hour(self, wanted: int) -> float:
        """Return how many losses without notice so many machines have in an hour, all in all."""


@dataclass(frozen=True)
class Rates:
    """Machines that are lost independently of each other, and replaced."""

    losses: float
    """Of one machine in an hour."""
    back: float = 120.0
    """Seconds until a lost machine is replaced, on average."""
    noticed: float = 0.0
    """Share of losses that are announced."""

    def changes(self, wanted: int, seed: int) -> Iterator[Change]:
        """Yield them: each machine that is there has the same chance to go, each that is not to come."""
        rng = np.random.Generator(np.random.Philox(key=[seed, wanted]))
        at, there = 0.0, wanted
        yield Change(at, there)
        while True:
            going, coming = there * self.losses / 3600, (wanted - there) / max(self.back, 1e-3)
            if going + coming == 0:
                return
            at += float(rng.exponential(1 / (going + coming)))
            goes = bool(rng.random() < going / (going + coming))
            there += -1 if goes else 1
            yield Change(at, there, goes and bool(rng.random() < self.noticed))

    def unnoticed_per_hour(self, wanted: int) -> float:
        """Return the rate of all machines together."""
        return wanted * self.losses * (1 - self.noticed)


@dataclass(frozen=True)
class _Metadata:
    gap_seconds: Finite


@dataclass(frozen=True)
class _Recording:
    metadata: _Metadata
    data: tuple[Count, ...]


@dataclass(frozen=True)
class Trace:
    """A recording of how many machines were to be had, every `gap` seconds."""

    gap: float
    counts: tuple[int, ...]
    noticed: float = 0.0
    """Share of losses that are announced."""

    @classmethod
    def read(cls, url: str, noticed: float = 0.0) -> Trace:
        """Read `{"metadata": {"gap_seconds": 300}, "data": [4, 4, 3, ...]}` from a path or URL; raises ConfigError."""
        where = f"--trace {redact(url)}"
        try:
            found = parse_fields(_Recording, parse_object(read_file(url)))
        except FileNotFoundError:
            raise ConfigError(f"{where}: no such file") from None
        except StorageError as error:
            raise ConfigError(f"{where} cannot be read: {error.line}") from error
        except ValueError as error:
            raise ConfigError(
                f'{where}: expected {{"metadata": {{"gap_seconds": 300}}, "data": [4, 3, ...]}}, but {error}'
            ) from error
        except backend_errors() as error:
            raise ConfigError(f"{where} cannot be read: {classify(error).advice}") from error
        gap, counts = found.metadata.gap_seconds, found.data
        if gap < LEAST_GAP or max(counts, default=0) == 0:
            raise ConfigError(
                f"{where}: expected a gap of {LEAST_GAP:g} s or more, and counts of which one is above 0"
            )
        return cls(gap, counts, noticed)

    def changes(self, wanted: int, seed: int) -> Iterator[Change]:
        """Yield the recording from a place in it that the seed draws, over and over. Its most machines stand for `wanted`.

        A change lies somewhere in its gap.
        """
        rng = np.random.Generator(np.random.Philox(key=[seed, wanted]))
        machines = self._machines(wanted)
        begin = int(rng.integers(len(machines)))
        yield Change(0.0, machines[begin])
        if len(set(machines)) == 1:
            return
        for gaps in itertools.count(1):
            before, there = (machines[(begin + n) % len(machines)] for n in (gaps - 1, gaps))
            if there != before:
                at = (gaps - float(rng.random())) * self.gap
                noticed = there < before and bool(rng.random() < self.noticed)
                yield Change(at, there, noticed)

    def unnoticed_per_hour(self, wanted: int) -> float:
        """Return the losses of the recording, with so many machines at most, by its hours with machines."""
        machines = self._machines(wanted)
        losses = sum(later < before for before, later in itertools.pairwise(machines))
        hours = sum(count > 0 for count in machines) * self.gap / 3600
        return losses * (1 - self.noticed) / hours

    def _machines(self, wanted: int) -> list[int]:
        """Return the counts, of which the most stands for `wanted`."""
        most = max(self.counts)
        return [round(count / most * wanted) for count in self.counts]


class Timeline:
    """Changes that are drawn as they are asked for."""

    def __init__(self, changes: Iterator[Change]) -> None:
        self._changes = changes
        self._known: list[Change] = [next(changes)]
        self._times = [self._known[0].at]
        self._more = True

    def at(self, when: float) -> Change:
        """Return the newest change at or before `when`. Raises ConfigError for a market that changes too often."""
        self._draw_beyond(when)
        return self._known[bisect.bisect_right(self._times, when) - 1]

    def after(self, when: float) -> Change | None:
        """Return the first change after `when`; None if there is none. Raises ConfigError as `at` does."""
        self._draw_beyond(when)
        place = bisect.bisect_right(self._times, when)
        return self._known[place] if place < len(self._known) else None

    def _draw_beyond(self, when: float) -> None:
        while self._more and self._times[-1] <= when:
            if len(self._known) > MOST_CHANGES:
                raise ConfigError(
                    f"machines come and go {MOST_CHANGES:,} times before the run can end: plan fewer steps or shorter ones, "
                    "fewer --losses, or less time for what stands still"
                )
            change = next(self._changes, None)
            if change is None:
                self._more = False
            else:
                self._known.append(change)
                self._times.append(change.at)
