"""Layout: are the folders there, has each picture its partner, what kinds of files are there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from raymat.analysis.preflight.findings import Finding
from raymat.config.run import RunConfig
from raymat.data.dataset.image_folder import Folder, UnreachableError
from raymat.data.dataset.listing import Files, Listing
from raymat.data.dataset.roots import Roots
from raymat.data.dataset.run_dataset import list_pictures
from raymat.data.preparation.copy_record import ReadRecord, read_record
from raymat.errors import DataError, NewerFormatError
from raymat.storage.urls import redact

_FACTS = ("passed over", "left out of ")
"""Beginnings of what listing says of files that nobody takes for pictures, or that it was told to leave out."""


def find_pictures(config: RunConfig) -> tuple[Listing | None, list[Finding]]:
    """List the run's pictures, or the half of them that can be used, and return what is wrong with the others."""
    if config.data.synthetic is not None:
        return None, [
            Finding("note", f"{config.data.synthetic:,} procedural pairs and backgrounds")
        ]
    found: dict[str, Finding] = {}
    listing = None
    valid = config.log.valid_examples > 0
    with _warnings() as said:
        for need_train, need_valid in ((True, valid), (True, False), (False, True)):
            try:
                listing = list_pictures(config, need_train=need_train, need_valid=need_valid)
                break
            except UnreachableError as error:
                found[error.line] = Finding("unseen", error.line)
                break
            except DataError as error:
                found.setdefault(error.line, Finding("error", error.line))
    if listing is not None and not found:
        urls = (*listing.dataset_url.splitlines(), *listing.backgrounds_url.splitlines())
        places = ", ".join(map(redact, urls))
        found[places] = Finding("note", f"{places}: each foreground has its alpha")
    if listing is not None:
        found |= {f.where or f.what: f for f in _copies(listing)}
    for line in said:
        found[line] = Finding("note" if line.startswith(_FACTS) else "warning", line)
    return listing, list(found.values())


def _copies(listing: Listing) -> Iterator[Finding]:
    """Say which folders are copies by `raymat prepare`, and what is no longer as it was written."""
    groups: tuple[tuple[str, list[Files]], ...] = (
        (listing.dataset_url, [f for s in (listing.train, listing.valid) for f in (s.fgr, s.pha)]),
        (listing.backgrounds_url, [s.backgrounds for s in (listing.train, listing.valid)]),
    )
    for urls, files in groups:
        for number, url in enumerate(urls.splitlines()):
            try:
                record = read_record(Folder(url))
            except (DataError, NewerFormatError) as error:
                yield Finding("warning", error.line)
                continue
            if record is not None:
                yield Finding("note", _told(url, record))
                yield from _changed(record, url, _sizes(files, Roots(urls), number))


def _told(url: str, record: ReadRecord) -> str:
    head, left_out = record.head, sum(bool(outcome.left_out) for outcome in record.outcomes)
    how = f"--longest {head.longest} --quality {head.quality} --alpha {head.alpha}"
    rest = f"; left out: {left_out:,} of {len(record.outcomes):,}" if left_out else ""
    return f"{redact(url)} was prepared from {head.source} with {how}{rest}"


def _sizes(files: list[Files], roots: Roots, number: int) -> dict[str, int]:
    """Return the sizes of the files that are listed in one of the folders, by their paths there."""
    rows = (row for each in files for row in map(each.row, range(len(each))))
    placed = ((roots.locate(row.path), row.size) for row in rows)
    return {path: size for (where, path), size in placed if where == number}


def _changed(record: ReadRecord, url: str, listed: Mapping[str, int]) -> Iterator[Finding]:
    """Yield the copy's files that are missing among those `listed`, or have another size."""
    for outcome in record.outcomes:
        for path, size, _ in outcome.files:
            if listed.get(path) != size:
                what = "not as raymat prepare wrote it"
                detail = "missing" if path not in listed else f"{listed[path]} bytes, not {size}"
                advice = "give its command again"
                yield Finding("warning", what, f"{redact(url)}/{path}", detail, advice)


def kinds_of(*files: Files) -> Counter[str]:
    """Count files by their extension, in lower case, without its dot and what a mattes' ending adds."""
    counted: Counter[str] = Counter()
    for each in files:
        for code, suffix in enumerate(each.suffixes):
            counted[suffix.lower().rpartition(".")[2]] += int((each.codes == code).sum())
    return counted


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what listing warns of, instead of printing it."""
    said: list[str] = []
    handler = _Collector(said)
    logger = logging.getLogger("raymat.data")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class _Collector(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() not in self._said:
            self._said.append(record.getMessage())
