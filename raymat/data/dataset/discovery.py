"""Listing a dataset's folders, and the checks that a listing allows.

    DATASET/train/fgr  DATASET/train/pha   BACKGROUNDS/train      and the same below valid/

A foreground and its alpha have the same path below these folders, the extension aside.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from raymat.data.dataset.file_names import ANY_NAMES, NameRules, listed, others, without_junk
from raymat.data.dataset.image_folder import READ_RETRY, Folder
from raymat.data.dataset.layout_hints import (
    missing_hint,
    no_pictures_hint,
    partner_hint,
    refuse_misnamed_halves,
)
from raymat.data.dataset.listing import Files, Listing, Split
from raymat.data.dataset.roots import Found, Roots, is_numbered
from raymat.errors import DataError
from raymat.storage.retry import RetryPolicy

log = logging.getLogger(__name__)

NAMED_IN_ERRORS = 10
"""Maximum number of files that an error names."""


def build_listing(
    dataset_url: str,
    backgrounds_url: str,
    need_valid: bool = True,
    retry: RetryPolicy = READ_RETRY,
    *,
    need_train: bool = True,
    rules: NameRules = ANY_NAMES,
) -> Listing:
    """List a dataset: one recursive listing for each of its six folders, all at the same time.

    Args:
        dataset_url: any fsspec URL, or several, one a line; each has train/ and valid/, each with fgr/ and pha/.
        backgrounds_url: likewise; each has train/ and valid/.
        need_valid: False: a valid/ that is missing or cannot be used counts as empty.
        need_train: the same for train/.
        rules: which files are pictures, and how they are paired.

    Raises:
        DataError: a folder is missing, empty or an unfinished copy, a file has no partner, is empty or there twice, or
            the storage cannot be listed. The first ten files are named.
    """
    dataset, backgrounds = Roots(dataset_url, retry), Roots(backgrounds_url, retry)
    for roots in (dataset, backgrounds):
        roots.refuse_unfinished()
        roots.refuse_twice()
    lister = _Lister(rules)
    with ThreadPoolExecutor(6) as pool:
        listing = {
            split: [
                pool.submit(lister.files, folder, f"{split}{below}")
                for folder, below in ((dataset, "/fgr"), (dataset, "/pha"), (backgrounds, ""))
            ]
            for split in ("train", "valid")
        }

    def make(split: str) -> Split:
        fgr, pha, bgr = (future.result() for future in listing[split])
        _refuse_pairs_as_backgrounds(backgrounds, bgr)
        return Split(*lister.paired(dataset, fgr, pha), bgr)

    train = make("train") if need_train else _or_empty(make, "train")
    valid = make("valid") if need_valid else _or_empty(make, "valid")
    lister.report()
    return Listing.of(dataset.urls, backgrounds.urls, train, valid)


def list_either(url: str, rules: NameRules = ANY_NAMES) -> Listing:
    """List a dataset, or a folder of backgrounds, whichever `url` is: its listing has no backgrounds, or them alone.

    One of train/ and valid/ may be missing. Raises DataError as `build_listing` does, also for halves of other names.
    """
    roots, folder, lister = Roots(url), Folder(url), _Lister(rules)
    roots.refuse_unfinished()
    inside = {split: folder.entries(split) for split in ("train", "valid")}
    if inside["train"] is None and inside["valid"] is None:
        raise DataError(f"no such folder: {folder.shown('train')}{missing_hint(folder, 'train')}")
    has_pairs = any({"fgr", "pha"} & {*(entries or ())} for entries in inside.values())

    def make(split: str) -> Split:
        empty = _empty(split)
        if inside[split] is None:
            return empty
        if not has_pairs:
            refuse_misnamed_halves(folder, split)
            return replace(empty, backgrounds=lister.files(roots, split))
        fgr, pha = (lister.files(roots, f"{split}/{half}") for half in ("fgr", "pha"))
        return Split(*lister.paired(roots, fgr, pha), empty.backgrounds)

    train, valid = make("train"), make("valid")
    lister.report()
    return Listing.of(roots.urls, roots.urls, train, valid)


def _or_empty(make: Callable[[str], Split], split: str) -> Split:
    try:
        return make(split)
    except DataError:
        return _empty(split)


def _empty(split: str) -> Split:
    return Split(*(_files(f"{split}{below}", []) for below in ("/fgr", "/pha", "")))


class _Lister:
    """Lister of folders by the same rules."""

    def __init__(self, rules: NameRules) -> None:
        self._rules = rules
        self._passed: list[Counter[str]] = []

    def files(self, roots: Roots, path: str) -> Files:
        """List the pictures below one folder of each root, with the checks that a listing allows.

        Of several datasets one at least has a validation set.
        """
        parts = roots.find(path, self._rules.is_junk, optional=path.startswith("valid"))
        if len(parts) > 1:
            at = (name for part in parts for name in part.sizes if is_numbered(name))
            _refuse("files in folders named as several datasets are told apart in", path, at)
        rows = [
            (part.prefix + stem, suffix, size)
            for part in parts
            for stem, suffix, size in self._part(part, path)
        ]
        return _files(path, rows)

    def _part(self, part: Found, path: str) -> list[tuple[str, str, int]]:
        """Return (name, rest of the name, size) of the pictures in one root."""
        rules, where = self._rules, part.folder.shown(path)
        kept, passed = without_junk(part.sizes, rules)
        self._passed.append(passed)
        names = {name: rules.split(name, path.endswith("/pha")) for name in kept}
        pictures = {name: kept[name] for name, (_, suffix) in names.items() if suffix}
        unread = others(kept, rules)
        if unread:
            message = "left out below %s, only %s are read: %s"
            log.warning(message, where, rules.kinds, listed(unread))
        if not pictures:
            hint = no_pictures_hint(part.folder, path, kept)
            raise DataError(f"no images ({rules.kinds}) below {where}{hint}")
        stems = Counter(names[name][0] for name in pictures)
        _refuse(
            "files with the same name but another extension below",
            where,
            (name for name in pictures if stems[names[name][0]] > 1),
        )
        empty = (name for name, size in pictures.items() if size == 0)
        _refuse("empty files (0 bytes) or links to nothing below", where, empty)
        return [(*names[name], size) for name, size in pictures.items()]

    def paired(self, dataset: Roots, fgr: Files, pha: Files) -> tuple[Files, Files]:
        """Return foregrounds and alphas that have each other; refuse those that have not, or leave them out if told so."""
        both = {*fgr.stems} & {*pha.stems}
        lonely = [[i for i, stem in enumerate(f.stems) if stem not in both] for f in (fgr, pha)]
        if not any(lonely):
            return fgr, pha
        names = [f.row(i).path for f, rows in zip((fgr, pha), lonely, strict=True) for i in rows]
        ours, theirs = ([f.stems[i] for i in r] for f, r in zip((fgr, pha), lonely, strict=True))
        skips = self._rules.skip_unpaired and bool(both)
        hint = partner_hint(
            ours, theirs, self._rules.pair_suffix, some_pair=bool(both) and not skips
        )
        if not skips:
            what = "files without a partner of the same name in fgr/ or pha/ in"
            _refuse(what, dataset.shown(), names, hint)
        left = f"{_some(names)}{hint}"
        log.warning("left out of %s for want of a partner: %s", dataset.shown(), left)
        return _only(fgr, both), _only(pha, both)

    def report(self) -> None:
        """Say once what was passed over."""
        passed = sum(self._passed, Counter[str]())
        if passed:
            log.warning("passed over, as left behind by systems or hidden: %s", listed(passed))


def _refuse_pairs_as_backgrounds(roots: Roots, files: Files) -> None:
    """Raise DataError if the backgrounds are a dataset: its mattes would be backgrounds too."""
    if {stem.split("/")[0] for stem in files.stems} == {"fgr", "pha"}:
        raise DataError(
            f"{roots.shown()} has fgr/ and pha/ in {files.folder}/: that is a dataset, whose mattes would be backgrounds "
            "too; give --backgrounds a folder of backgrounds"
        )


def _files(folder: str, rows: Iterable[tuple[str, str, int]]) -> Files:
    """Return files of (name, rest of the name, size) as columns."""
    rows = sorted(rows)
    suffixes = sorted({suffix for _, suffix, _ in rows})
    place = {suffix: code for code, suffix in enumerate(suffixes)}
    return Files(
        folder=folder,
        stems=[stem for stem, _, _ in rows],
        suffixes=suffixes,
        codes=np.array([place[suffix] for _, suffix, _ in rows], dtype=np.uint8),
        sizes=np.array([size for _, _, size in rows], dtype=np.int64),
    )


def _only(files: Files, stems: set[str]) -> Files:
    rows = zip(files.stems, files.codes, files.sizes, strict=True)
    kept = ((s, files.suffixes[code], int(size)) for s, code, size in rows if s in stems)
    return _files(files.folder, kept)


def _refuse(what: str, where: str, names: Iterable[str], hint: str = "") -> None:
    """Raise DataError if there are any `names`, with the first ten of them."""
    names = sorted(names)
    if names:
        raise DataError(f"{len(names):,} {what} {where}: {_some(names)}{hint}")


def _some(names: Iterable[str]) -> str:
    """Return the first ten of the names, and how many more there are."""
    names = sorted(names)
    more = len(names) - NAMED_IN_ERRORS
    return ", ".join(names[:NAMED_IN_ERRORS]) + (f" and {more:,} more" if more > 0 else "")
