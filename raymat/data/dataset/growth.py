"""Growing a dataset: files that a run already used keep their places, new ones come after them.

The rows of the run's listing identify its examples: all files must still be there, with the same sizes. Missing or
changed files are refused, since the current pass still needs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from raymat.data.dataset.file_names import composed
from raymat.data.dataset.image_folder import UNKNOWN_SIZE
from raymat.data.dataset.listing import Files, Listing, Split
from raymat.errors import DataError
from raymat.storage.urls import shown_urls

NAMED = 3


@dataclass(frozen=True)
class Added:
    """Additions to one kind of pictures: "pairs", "backgrounds", "validation pairs", "validation backgrounds"."""

    kind: str
    before: int
    count: int
    names: tuple[str, ...] = ()
    """The first of the new ones, without extension."""

    def __str__(self) -> str:
        """Return the text for people: `200 pairs + 40 (a, b, c, ...)`."""
        more = ", ..." if self.count > len(self.names) else ""
        names = f" ({', '.join(self.names)}{more})" if self.names else ""
        return f"{self.before:,} {self.kind}" + (f" + {self.count:,}{names}" if self.count else "")


@dataclass(frozen=True)
class Growth:
    """Listing of a run's dataset with all that was added to it."""

    listing: Listing
    added: tuple[Added, ...]


def grow(old: Listing, new: Listing) -> Growth:
    """Return the listing `new` with the rows of `old` first, in their places.

    A validation set that is missing from `new` stays as it was.

    Raises:
        DataError: files of `old` are gone or have another size or extension; how many, and the first of them.
    """
    gone, changed = list(_gone(old, new)), list(_changed(old, new))
    if gone:
        _refuse_other_accents(old, new)
    if gone or changed:
        raise DataError(
            f"the run's dataset may only grow: missing {_count(gone)}, changed {_count(changed)}, at "
            f"{shown_urls(new.dataset_url)} and {shown_urls(new.backgrounds_url)}: put them back as they were (new versions go "
            "beside them, under other names), or start another run with --init"
        )
    train, valid = (
        Split(*(_joined(*files) for files in _folders(old, new, split)))
        for split in ("train", "valid")
    )
    listing = Listing.of(new.dataset_url, new.backgrounds_url, train, valid)
    return Growth(listing, tuple(_added(old, listing)))


def move(old: Listing, new: Listing) -> Listing:
    """Return the listing `old` with the places of `new`, which lists a copy of the same files.

    Raises:
        DataError: it is no copy; names the first difference.
    """
    _refuse_other_accents(old, new)
    difference = next(_differences(old, new), None)
    if difference is not None:
        raise DataError(difference)
    return replace(old, dataset_url=new.dataset_url, backgrounds_url=new.backgrounds_url)


def _differences(old: Listing, new: Listing) -> Iterator[str]:
    """Yield in words what is other in `new`, folder by folder."""
    for was, now in _folder_pairs(old, new):
        places = {stem: i for i, stem in enumerate(now.stems)}
        for i, stem in enumerate(was.stems):
            if stem not in places:
                yield f"{was.row(i).path} is missing"
            elif not _same(was, i, now, places[stem]):
                before, found = was.row(i), now.row(places[stem])
                same_name = before.path == found.path
                size = f"has {found.size:,} bytes, had {before.size:,}"
                yield f"{found.path} {size}" if same_name else f"{before.path} is now {found.path}"
        known = set(was.stems)
        yield from (f"{now.row(i).path} is new" for i, s in enumerate(now.stems) if s not in known)


def _refuse_other_accents(old: Listing, new: Listing) -> None:
    """Raise DataError if a file is there under a name that only looks the same."""
    for was, now in _folder_pairs(old, new):
        known = set(now.stems)
        alike = {composed(stem) for stem in known if not stem.isascii()}
        for i, stem in enumerate(was.stems):
            if stem not in known and composed(stem) in alike:
                raise DataError(
                    f"the accents of {was.row(i).path} are written in another form than when the run began (NFC or NFD, as a "
                    "Mac makes them), which looks the same: copy the files again with their names as they were"
                )


def _folder_pairs(old: Listing, new: Listing) -> Iterator[tuple[Files, Files]]:
    for was, now in ((old.train, new.train), (old.valid, new.valid)):
        yield from ((was.fgr, now.fgr), (was.pha, now.pha), (was.backgrounds, now.backgrounds))


def _folders(old: Listing, new: Listing, split: str) -> list[tuple[Files, Files]]:
    """Return (before, after) of a split's three folders."""
    was, now = getattr(old, split), getattr(new, split)
    if split == "valid" and not len(now.fgr):
        now = was
    return [(was.fgr, now.fgr), (was.pha, now.pha), (was.backgrounds, now.backgrounds)]


def _all_folders(old: Listing, new: Listing) -> list[tuple[Files, Files]]:
    return _folders(old, new, "train") + _folders(old, new, "valid")


def _gone(old: Listing, new: Listing) -> Iterator[str]:
    for was, now in _all_folders(old, new):
        there = set(now.stems)
        yield from (was.row(i).path for i, stem in enumerate(was.stems) if stem not in there)


def _changed(old: Listing, new: Listing) -> Iterator[str]:
    for was, now in _all_folders(old, new):
        places = {stem: i for i, stem in enumerate(now.stems)}
        for i, stem in enumerate(was.stems):
            if stem in places and not _same(was, i, now, places[stem]):
                yield was.row(i).path


def _same(was: Files, i: int, now: Files, j: int) -> bool:
    if was.suffixes[was.codes[i]] != now.suffixes[now.codes[j]]:
        return False
    sizes = {int(was.sizes[i]), int(now.sizes[j])} - {UNKNOWN_SIZE}
    return len(sizes) < 2


def _joined(old: Files, new: Files) -> Files:
    """Return `old` followed by what only `new` has."""
    known = set(old.stems)
    fresh = [i for i, stem in enumerate(new.stems) if stem not in known]
    suffixes = sorted({*old.suffixes, *(new.suffixes[new.codes[i]] for i in fresh)})
    place = {suffix: code for code, suffix in enumerate(suffixes)}
    codes = [place[old.suffixes[code]] for code in old.codes]
    codes += [place[new.suffixes[new.codes[i]]] for i in fresh]
    return Files(
        folder=old.folder,
        stems=old.stems + [new.stems[i] for i in fresh],
        suffixes=suffixes,
        codes=np.array(codes, dtype=np.uint8),
        sizes=np.concatenate([old.sizes, new.sizes[fresh]]),
    )


def _added(old: Listing, grown: Listing) -> Iterator[Added]:
    for split, prefix in (("train", ""), ("valid", "validation ")):
        was, now = getattr(old, split), getattr(grown, split)
        for kind in ("pairs", "backgrounds"):
            before = len(was.fgr if kind == "pairs" else was.backgrounds)
            stems = now.fgr.stems if kind == "pairs" else now.backgrounds.stems
            new = stems[before:]
            yield Added(prefix + kind, before, len(new), tuple(new[:NAMED]))


def _count(paths: list[str]) -> str:
    return f"{len(paths):,} files" + (f" ({_few(paths)})" if paths else "")


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
