"""Layout: are the folders there, has each picture its partner, what kinds of files are there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from raymat.analysis.preflight.findings import Finding
from raymat.config.run import RunConfig
from raymat.data.dataset.image_folder import UnreachableError
from raymat.data.dataset.listing import Files, Listing
from raymat.data.dataset.run_dataset import list_pictures
from raymat.errors import DataError
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
    for line in said:
        found[line] = Finding("note" if line.startswith(_FACTS) else "warning", line)
    return listing, list(found.values())


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
