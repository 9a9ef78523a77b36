"""Pictures: opened and decoded as training does it, with their sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

from raymat.analysis.preflight.findings import Finding
from raymat.analysis.preflight.folders import kinds_of
from raymat.analysis.preflight.matte_looks import MatteTally, looks_of
from raymat.analysis.preflight.subject import Subject, threads
from raymat.console import columns
from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.dataset.listing import Listing
from raymat.data.dataset.source import Source
from raymat.data.decode import OpenImage, Scale, use_one_thread
from raymat.data.feed import in_order
from raymat.errors import DataError

Kind = Literal["pairs", "backgrounds"]
Size = tuple[int, int]
"""Width and height in pixels."""

SHRUNK: Scale = 8
"""Scale at which backgrounds are decoded: what is damaged is found all the same, in less time."""


class Place(NamedTuple):
    """Place of a pair or a background in the dataset."""

    kind: Kind
    valid: bool
    number: int


@dataclass(frozen=True)
class Seen:
    """What a look at a pair or a background has shown."""

    place: Place
    size: Size | None
    """None: it cannot be used."""
    findings: tuple[Finding, ...] = ()
    looks: tuple[str, ...] = ()
    """What the matte is likely to be, as keys of `matte_statistics.LIKELY`."""
    matte: str = ""
    """Where the matte is."""


def look(source: Source, place: Place, resolution: int) -> Seen:
    """Open and decode a pair or a background. Raises DataError if the storage does not answer."""
    use_one_thread()
    try:
        if place.kind == "backgrounds":
            image = source.open_background(place.number, valid=place.valid)
            image.decode(SHRUNK)
            return Seen(place, image.size, (*_small(image, resolution), *_several(image)))
        fgr, pha = source.open_pair(place.number, valid=place.valid)
        looks = looks_of(fgr, pha)
        found = (*_small(fgr, resolution), *_several(fgr), *_several(pha))
        return Seen(place, fgr.size, found, looks, pha.path)
    except UnreadableImage as error:
        return Seen(place, None, (_unusable(error),))


def _unusable(error: UnreadableImage) -> Finding:
    advice = "training takes another picture in its place: replace or remove it"
    return Finding("error", "cannot be used", error.path, error.reason, advice)


def _small(image: OpenImage, resolution: int) -> Iterator[Finding]:
    width, height = image.size
    if 2 * min(width, height) < resolution:
        yield Finding(
            "warning",
            f"smaller than half of --resolution {resolution}",
            image.path,
            f"{width}x{height}",
            "it is enlarged, which adds no detail: use a smaller --resolution or larger pictures",
        )


def _several(image: OpenImage) -> Iterator[Finding]:
    count = image.frames
    if count > 1:
        yield Finding(
            "warning",
            "an animation, or a file of several pages, of which only the first picture is read",
            image.path,
            f"{count} pictures",
            "unpack it to train on all of them",
        )


def places(subject: Subject) -> Iterator[Place]:
    """Yield what is looked at, by the subject's sample."""
    for number, ((kind, valid), count) in enumerate(counts_of(subject.source).items()):
        for index in subject.chosen(count, number):
            yield Place(kind, valid, index)


def counts_of(source: Source | None) -> dict[tuple[Kind, bool], int]:
    """Return how many there are of each kind, to train and (True) to validate on."""
    if source is None:
        return {}
    return {
        ("pairs", False): source.pairs,
        ("backgrounds", False): source.backgrounds,
        ("pairs", True): source.valid_pairs,
        ("backgrounds", True): source.valid_backgrounds,
    }


def files_of(chosen: Iterable[Place]) -> int:
    """Return how many files these are."""
    return sum(2 if place.kind == "pairs" else 1 for place in chosen)


def check_pictures(subject: Subject) -> Iterator[Finding]:
    """Look at the pictures in threads, and end with a table of their sizes."""
    source, listing = subject.source, subject.listing
    if source is None or listing is None:
        return
    sizes: dict[tuple[Kind, bool], Counter[Size]] = {kind: Counter() for kind in counts_of(source)}
    mattes = MatteTally()
    try:
        for seen in _looks(subject, source):
            yield from seen.findings
            if seen.size is not None:
                sizes[seen.place.kind, seen.place.valid][seen.size] += 1
            if seen.matte:
                mattes.add(seen.looks, seen.matte)
    except DataError as error:
        yield Finding("unseen", error.line)
    yield from mattes.findings()
    yield _table(listing, source, sizes)


def _looks(subject: Subject, source: Source) -> Iterator[Seen]:
    """Look at what the subject chooses, in threads, with its bar."""
    resolution = subject.config.data.resolution
    with subject.progress or nullcontext() as bar:
        if bar is not None:
            bar.begin(files_of(places(subject)))
        for seen in in_order(lambda p: look(source, p, resolution), places(subject), threads()):
            yield seen
            if bar is not None:
                bar.add(files_of([seen.place]))


def _table(
    listing: Listing, source: Source, sizes: dict[tuple[Kind, bool], Counter[Size]]
) -> Finding:
    rows: list[tuple[str, ...]] = [("", "count", "seen", "smallest", "median", "largest", "kinds")]
    data = []
    for (kind, valid), count in counts_of(source).items():
        split = listing.valid if valid else listing.train
        files = (split.fgr, split.pha) if kind == "pairs" else (split.backgrounds,)
        counted, seen = kinds_of(*files), sizes[kind, valid]
        name = f"{'valid' if valid else 'train'} {kind}"
        spread = spread_of(seen)
        rows.append(
            (
                name,
                f"{count:,}",
                f"{seen.total():,}",
                *([f"{w}x{h}" for w, h in spread] or ["-"] * 3),
                ", ".join(kind for kind, _ in counted.most_common()),
            )
        )
        told = dict(zip(("smallest", "median", "largest"), spread, strict=False))
        data.append(
            {"what": name, "count": count, "readable": seen.total(), "kinds": dict(counted)} | told
        )
    return Finding("note", columns(rows), data=data)


def spread_of(sizes: Counter[Size]) -> tuple[Size, ...]:
    """Return the smallest, the median and the largest size by their pixels; nothing of nothing."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    half, below = (sizes.total() + 1) // 2, 0
    for size in ordered:
        below += sizes[size]
        if below >= half:
            return ordered[0], size, ordered[-1]
    return ()
