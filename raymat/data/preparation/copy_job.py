"""What is copied for a smaller dataset: its pairs and backgrounds, one by one, in any process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.dataset.listing import FileRow, Listing
from raymat.data.dataset.source import FolderSource
from raymat.data.decode import use_one_thread
from raymat.data.preparation.picture_copy import Copied, CopySettings, copy_colours, copy_matte
from raymat.storage.digest import digest
from raymat.storage.store import Store, can_be_stored


class CopyPlace(NamedTuple):
    """Place of a pair or a background in a listing."""

    kind: Literal["pairs", "backgrounds"]
    valid: bool
    number: int


class CopiedFile(NamedTuple):
    """File of the copy: its path, size in bytes and digest."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True)
class CopyOutcome:
    """What became of a pair or a background: its files in the copy, or why it is left out."""

    sources: tuple[FileRow, ...]
    """Its files in the dataset."""
    files: tuple[CopiedFile, ...] = ()
    left_out: str = ""
    """The path and the reason."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        told = {"sources": self.sources, "files": self.files}
        return told | ({"left_out": self.left_out} if self.left_out else {})


class CopyJob:
    """A dataset, where its copy lies, and how it is made. It can be pickled, and shared by threads."""

    def __init__(self, listing: Listing, settings: CopySettings, store: Store) -> None:
        self.listing, self.settings, self.store = listing, settings, store
        self._source = FolderSource(listing)

    def __reduce__(self) -> tuple[Any, ...]:
        return CopyJob, (self.listing, self.settings, self.store)

    def places(self) -> Iterator[CopyPlace]:
        """Yield what there is to copy."""
        for valid, split in ((False, self.listing.train), (True, self.listing.valid)):
            yield from (CopyPlace("pairs", valid, n) for n in range(len(split.fgr)))
            yield from (CopyPlace("backgrounds", valid, n) for n in range(len(split.backgrounds)))

    def sources(self, place: CopyPlace) -> tuple[FileRow, ...]:
        """Return the files of a pair or a background."""
        split = self.listing.valid if place.valid else self.listing.train
        if place.kind == "backgrounds":
            return (split.background(place.number),)
        pair = split.pair(place.number)
        return FileRow(pair.fgr, pair.fgr_size), FileRow(pair.pha, pair.pha_size)

    def copy(self, place: CopyPlace) -> CopyOutcome:
        """Copy a pair or a background: all its files, or none if one of them cannot be read.

        Raises:
            DataError: the dataset's storage does not answer. StorageError: the copy's fails.
        """
        use_one_thread()
        sources = self.sources(place)
        try:
            for source in sources:
                if not can_be_stored(source.path):
                    raise UnreadableImage(source.path, "a name that cannot be stored: rename it")
            copied = self._copied(place)
        except UnreadableImage as error:
            return CopyOutcome(sources, left_out=str(error))
        files = []
        for source, (data, suffix) in zip(sources, copied, strict=True):
            path = os.path.splitext(source.path)[0] + suffix
            self.store.write(path, data)
            files.append(CopiedFile(path, len(data), digest([data])))
        return CopyOutcome(sources, tuple(files))

    def _copied(self, place: CopyPlace) -> tuple[Copied, ...]:
        if place.kind == "backgrounds":
            image = self._source.open_background(place.number, valid=place.valid)
            return (copy_colours(image, self.settings),)
        fgr, pha = self._source.open_pair(place.number, valid=place.valid)
        return copy_colours(fgr, self.settings), copy_matte(pha, self.settings)
