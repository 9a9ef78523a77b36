"""Listing a dataset's folders, and the checks that a listing allows.

    DATASET/train/fgr  DATASET/train/pha   BACKGROUNDS/train      and the same below valid/

A foreground and its alpha have the same path below these folders, the extension aside.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from raymat.data.dataset.image_folder import READ_RETRY, Folder
from raymat.data.dataset.listing import Files, Listing, Split
from raymat.errors import DataError
from raymat.storage.retry import RetryPolicy

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Extensions of images, in lower case; all other files are ignored."""

_OTHER_PICTURES = {
    *(".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".exr", ".hdr"),
    *(
        ".tga",
        ".psd",
        ".dng",
        ".cr2",
        ".cr3",
        ".nef",
        ".arw",
        ".raf",
        ".mp4",
        ".mov",
        ".jfif",
        ".jpe",
    ),
}
"""Extensions of what a user may take for part of the dataset, and that is not read."""

NAMED_IN_ERRORS = 10
"""Maximum number of files that an error names."""


def build_listing(
    dataset_url: str,
    backgrounds_url: str,
    need_valid: bool = True,
    retry: RetryPolicy = READ_RETRY,
    *,
    need_train: bool = True,
) -> Listing:
    """List a dataset: one recursive listing for each of its six folders, all at the same time.

    Args:
        dataset_url: any fsspec URL; has train/ and valid/, each with fgr/ and pha/.
        backgrounds_url: any fsspec URL; has train/ and valid/.
        need_valid: False: a valid/ that is missing or cannot be used counts as empty.
        need_train: the same for train/.

    Raises:
        DataError: a folder is missing or empty, a file has no partner, is empty or there twice, or
            the storage cannot be listed. The first ten files are named.
    """
    dataset, backgrounds = Folder(dataset_url, retry), Folder(backgrounds_url, retry)
    with ThreadPoolExecutor(6) as pool:
        listing = {
            split: [
                pool.submit(_list_folder, folder, f"{split}{below}")
                for folder, below in ((dataset, "/fgr"), (dataset, "/pha"), (backgrounds, ""))
            ]
            for split in ("train", "valid")
        }

    def make(split: str) -> Split:
        fgr, pha, bgr = (future.result() for future in listing[split])
        _check_partners(dataset, fgr, pha)
        return Split(fgr, pha, bgr)

    train = make("train") if need_train else _or_empty(make, "train")
    valid = make("valid") if need_valid else _or_empty(make, "valid")
    return Listing.of(dataset.url, backgrounds.url, train, valid)


def _or_empty(make: Callable[[str], Split], split: str) -> Split:
    try:
        return make(split)
    except DataError:
        return Split(*(_files(f"{split}{below}", {}) for below in ("/fgr", "/pha", "")))


def _list_folder(folder: Folder, path: str) -> Files:
    """List the images below one folder, with the checks that a listing allows."""
    found = folder.find(path)
    if found is None:
        raise DataError(f"no such folder: {folder.shown(path)}")
    images = {name: size for name, size in found.items() if _split_suffix(name)[1]}
    _report_others(folder.shown(path), found)
    if not images:
        raise DataError(f"no images (jpg, jpeg, png, webp) below {folder.shown(path)}")
    stems = Counter(_split_suffix(name)[0] for name in images)
    _refuse(
        "files with the same name but another extension below",
        folder.shown(path),
        (name for name in images if stems[_split_suffix(name)[0]] > 1),
    )
    _refuse(
        "empty files (0 bytes) below",
        folder.shown(path),
        (name for name, size in images.items() if size == 0),
    )
    return _files(path, images)


def _report_others(where: str, names: Iterable[str]) -> None:
    """Warn of pictures and videos that are left out, counted by kind."""
    suffixes = (os.path.splitext(name)[1].lower() for name in names)
    kinds = Counter(suffix for suffix in suffixes if suffix in _OTHER_PICTURES)
    if kinds:
        counted = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        log.warning("left out below %s, only jpg, jpeg, png and webp are read: %s", where, counted)


def _split_suffix(name: str) -> tuple[str, str]:
    """Split a path into the part without extension and the extension as written, "" if it is not an image's."""
    stem, suffix = os.path.splitext(name)
    return (stem, suffix) if suffix.lower() in SUFFIXES else (name, "")


def _files(folder: str, images: Mapping[str, int]) -> Files:
    rows = sorted((*_split_suffix(name), size) for name, size in images.items())
    suffixes = sorted({suffix for _, suffix, _ in rows})
    place = {suffix: code for code, suffix in enumerate(suffixes)}
    return Files(
        folder=folder,
        stems=[stem for stem, _, _ in rows],
        suffixes=suffixes,
        codes=np.array([place[suffix] for _, suffix, _ in rows], dtype=np.uint8),
        sizes=np.array([size for _, _, size in rows], dtype=np.int64),
    )


def _check_partners(dataset: Folder, fgr: Files, pha: Files) -> None:
    ours, theirs = set(fgr.stems), set(pha.stems)
    lonely = [f"{fgr.row(i).path}" for i, stem in enumerate(fgr.stems) if stem not in theirs]
    lonely += [f"{pha.row(i).path}" for i, stem in enumerate(pha.stems) if stem not in ours]
    _refuse("files without a partner of the same name in fgr/ or pha/ in", dataset.shown(), lonely)


def _refuse(what: str, where: str, names: Iterable[str]) -> None:
    """Raise DataError if there are any `names`, with the first ten of them."""
    names = sorted(names)
    if names:
        first = ", ".join(names[:NAMED_IN_ERRORS])
        more = len(names) - NAMED_IN_ERRORS
        rest = f" and {more:,} more" if more > 0 else ""
        raise DataError(f"{len(names):,} {what} {where}: {first}{rest}")
