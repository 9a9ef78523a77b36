"""Duplicates: pictures of the training set that also stand in the validation set, whatever their names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from raymat.analysis.preflight.findings import Finding
from raymat.analysis.preflight.subject import Subject, threads
from raymat.data.dataset.image_folder import Folder, UnreadableImage
from raymat.data.dataset.listing import FileRow, Files
from raymat.data.feed import in_order
from raymat.errors import DataError

_SHOWN_PURPOSE = 100


def check_duplicates(subject: Subject) -> Iterator[Finding]:
    """Compare the contents of all files that have the size in bytes of one of the other split.

    Nothing else is read. Of a sample, as many sizes are looked at as its pictures are.
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
        try:
            yield from _compare(subject, what, Folder(url), (train, valid))
        except DataError as error:
            yield Finding("unseen", error.line)


def _compare(
    subject: Subject, what: str, folder: Folder, splits: tuple[Files, Files]
) -> Iterator[Finding]:
    train, valid = splits
    shared = np.intersect1d(train.sizes, valid.sizes)
    sizes = shared[np.sort(np.array(subject.chosen(len(shared), _SHOWN_PURPOSE), dtype=np.int64))]
    known = {d: row.path for row, d in _digests(folder, valid, sizes)}
    for row, digest in _digests(folder, train, sizes) if known else ():
        if digest in known:
            yield Finding(
                "error",
                f"{what} that are in train/ and in valid/",
                folder.shown(row.path),
                f"as {known[digest]}",
                "validation would measure what was learnt by heart: remove one of them",
            )
    if len(sizes) < len(shared):
        share = f"{len(sizes):,} of {len(shared):,} sizes"
        yield Finding("note", f"{what}: compared where sizes are equal, of {share} (--all: of all)")


def _digests(
    folder: Folder, files: Files, sizes: NDArray[np.int64]
) -> Iterator[tuple[FileRow, bytes]]:
    """Yield the digest of each file with one of these sizes in bytes that can be read."""

    def digest(index: int) -> tuple[FileRow, bytes] | None:
        row = files.row(index)
        try:
            content = folder.read(row.path, row.size)
        except UnreadableImage:
            return None
        return row, hashlib.blake2b(content, digest_size=16).digest()

    chosen = map(int, np.flatnonzero(np.isin(files.sizes, sizes)))
    yield from filter(None, in_order(digest, chosen, threads()))
