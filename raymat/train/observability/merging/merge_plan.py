"""Which neighbouring objects to merge, from their sizes alone.

Objects come in three sizes: small, middle, large. Sixteen small neighbours become one; so do 32 neighbours that are not
large. What is large is left alone. So a record of N bytes in any number of objects ends in at most N / 4 MB objects and some
dozens, and each byte is rewritten a few times at most.
"""

from __future__ import annotations

from collections.abc import Sequence

LIMITS = (64 * 2**10, 4 * 2**20)
"""Bytes below which an object is small, and below which it is not large yet."""
NEIGHBOURS = 16
"""Small neighbours that are merged; twice as many if some of them are of the middle size."""
MOST_BYTES = 16 * 2**20
"""A merged object is not larger, unless its first part is."""
MOST_PARTS = 1000
"""Parts of one merge: so many are deleted by one request."""


def next_merge(sizes: Sequence[int]) -> slice | None:
    """Return which neighbours to merge next; None if nothing needs to be merged.

    `sizes`: bytes of each object, in the order of what they record.
    """
    for tier, limit in enumerate(LIMITS):
        start = 0
        for end in range(len(sizes) + 1):
            if end < len(sizes) and sizes[end] < limit:
                continue
            if end - start >= NEIGHBOURS * (tier + 1):
                return slice(start, _cut(sizes, start, end))
            start = end + 1
    return None


def _cut(sizes: Sequence[int], start: int, end: int) -> int:
    """Return where a merge from `start` on ends, at the latest at `end`, by its bytes and parts."""
    total = 0
    for stop in range(start, min(end, start + MOST_PARTS)):
        total += sizes[stop]
        if total > MOST_BYTES and stop > start + 1:
            return stop
    return min(end, start + MOST_PARTS)
