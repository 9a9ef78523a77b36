"""The first look at a run's pictures, when it starts: a second of the same checks, and never an error."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator

from raymat.analysis.preflight.findings import Section
from raymat.analysis.preflight.matte_looks import MatteTally
from raymat.analysis.preflight.picture_files import Seen, Size, look, places, spread_of
from raymat.analysis.preflight.subject import Subject
from raymat.config.run import RunConfig
from raymat.console import count
from raymat.data.dataset.source import Source
from raymat.errors import DataError

SECONDS = 1.0
"""What the first look may take."""
_EACH = 64
"""Pairs, and backgrounds, of each split that are looked at within this time, at most."""


def first_look(config: RunConfig, source: Source, seconds: float = SECONDS) -> Iterator[str]:
    """Look at some of a run's pictures for at most `seconds`, and yield lines: what was seen, then what is wrong.

    Procedural pictures are not looked at. Reads that take longer are left to themselves.
    """
    if config.data.synthetic is not None:
        return
    subject = Subject(config=config, source=source, sample=_EACH)
    seen: list[Seen] = []
    deadline = time.monotonic() + seconds
    reader = threading.Thread(target=_read, args=(subject, deadline, seen), daemon=True)
    reader.start()
    reader.join(seconds)
    if seen:
        yield from _lines(list(seen))
    else:
        yield f"a first look at the pictures: none could be read in {seconds:g} s"


def _read(subject: Subject, deadline: float, seen: list[Seen]) -> None:
    assert subject.source is not None
    by_kind = [[*group] for _, group in itertools.groupby(places(subject), lambda place: place[:2])]
    for place in itertools.chain(*itertools.zip_longest(*by_kind)):
        if time.monotonic() >= deadline:
            return
        if place is None:
            continue
        try:
            seen.append(look(subject.source, place, subject.config.data.resolution))
        except DataError:  # the storage does not answer: the run finds out by itself
            return


def _lines(seen: list[Seen]) -> Iterator[str]:
    section, mattes, sizes = Section("pictures"), MatteTally(), Counter[Size]()
    for one in seen:
        section.add(one.findings)
        if one.matte:
            mattes.add(one.looks, one.matte)
        if one.size is not None:
            sizes[one.size] += 1
    section.add(mattes.findings())
    wrong = [*section.of("error"), *section.of("warning")]
    spread = [f"{width}x{height}" for width, height in spread_of(sizes)]
    extent = f", {spread[0]} to {spread[-1]} pixels" if len(set(spread)) > 1 else ""
    extent = f", {spread[0]} pixels" if len(set(spread)) == 1 else extent
    result = "nothing wrong" if not wrong else "raymat check with --all looks at all"
    pairs = sum(one.place.kind == "pairs" for one in seen)
    looked = f"{count(pairs, 'pair')} and {count(len(seen) - pairs, 'background')}"
    yield f"a first look at {looked}{extent}: {result}"
    yield from (f"{found.first.severity}: {found.line}" for found in wrong)
