"""A worker's place among the workers of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """The group of data-parallel workers: this worker's `rank` (0 to size - 1) among `size`."""

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not in a world of {self.size}")

    def share(self, count: int, rank: int | None = None) -> range:
        """Return the positions, out of `count`, that belong to `rank` (default: this worker's).

        Contiguous, in rank order, sizes differing by one at most: 8 over 3 workers are 3, 3, 2.
        """
        rank = self.rank if rank is None else rank
        base, extra = divmod(count, self.size)
        start = rank * base + min(rank, extra)
        return range(start, start + base + (rank < extra))
