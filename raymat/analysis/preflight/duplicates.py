"""Duplicates: pictures of the training set that also stand in the validation set, whatever their names."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raymat.analysis.preflight.findings import Finding
from raymat.analysis.preflight.subject import Subject, threads
from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.dataset.listing import FileRow, Files
from raymat.data.dataset.roots import Roots
from raymat.data.feed import in_order
from raymat.errors import DataError

_PURPOSE = 100
_TRAIN_EACH = 4


def check_duplicates(subject: Subject) -> Iterator[Finding]:
    """Compare the contents of all files that have the size in bytes of one of the other split; nothing else is read.

    Of a sample at most so many files of valid/, and `_TRAIN_EACH` times as many of train/.
    """
    listing = subject.listing
    if listing is None:
        return
    sides = (
        ("foregrounds", listing.dataset_url, listing.train.fgr, listing.valid.fgr),
        (
            "backgrounds",
            listing.backgrounds_url,
            listing.train.backgrounds,
            listing.valid.backgrounds,
        ),
    )
    for what, url, train, valid in sides:
        if not len(train) or not len(valid):
            continue
        yield Finding(
            "note", f"{what}: {len(train):,} and {len(valid):,} compared by their contents"
        )
        try:
            yield from _compare(subject, what, Roots(url), (train, valid))
        except DataError as error:
            yield Finding("unseen", error.line)


def _compare(
    subject: Subject, what: str, folder: Roots, splits: tuple[Files, Files]
) -> Iterator[Finding]:
    train, valid = splits
    ours = _of_sizes(valid, train.sizes)
    chosen = ours[subject.chosen(len(ours), _PURPOSE)]
    theirs = _of_sizes(train, valid.sizes[chosen])
    known = {digest: row.path for row, digest in _digests(folder, valid, chosen)}
    wider = dataclasses.replace(subject, sample=subject.sample and subject.sample * _TRAIN_EACH)
    read = theirs[wider.chosen(len(theirs), _PURPOSE)]
    for row, digest in _digests(folder, train, read):
        if digest in known:
            yield Finding(
                "error",
                f"{what} that are in train/ and in valid/",
                folder.shown(row.path),
                f"as {known[digest]}",
                "validation would measure what was learnt by heart: remove one of them",
            )
    if len(chosen) < len(ours) or len(read) < len(theirs):
        yield Finding("note", f"{what}: a sample of those with equal sizes (--all: all of them)")


def _of_sizes(files: Files, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which files have one of these sizes in bytes."""
    return np.flatnonzero(np.isin(files.sizes, sizes))


def _digests(
    folder: Roots, files: Files, chosen: NDArray[np.int64]
) -> Iterator[tuple[FileRow, bytes]]:
    """Yield the digest of each chosen file that can be read."""

    def digest(index: int) -> tuple[FileRow, bytes] | None:
        row = files.row(index)
        try:
            content = folder.read(row.path, row.size)
        except UnreadableImage:
            return None
        return row, hashlib.blake2b(content, digest_size=16).digest()

    yield from filter(None, in_order(digest, map(int, chosen), threads()))
