"""Sources of pairs and backgrounds: files at any URL, or procedural pictures.

A `SourceSpec` is sent to the reading processes; each opens it to a `Source` once.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from raymat.data.dataset.image_folder import READ_RETRY, Folder, UnreadableImage
from raymat.data.dataset.listing import FileRow, Listing, Split
from raymat.data.dataset.roots import Roots
from raymat.data.decode import EncodedImage, OpenImage, Pixels, RawImage
from raymat.data.decoding.header import DECODING
from raymat.data.synthetic.pictures import synthetic_background, synthetic_pair
from raymat.errors import DataError, NewerFormatError
from raymat.storage.retry import RetryPolicy
from raymat.storage.urls import redact

LOOKED_AT, LOOKED_AT_LATER = 256, 16
"""Mattes that each process looks at first; afterwards it looks at one of so many."""
_SIDEWAYS = ": one of them lies on its side, turn it, or make the matte of the upright picture"
FIRST_VALID_SYNTHETIC = 2**40  # validation pictures differ from all training pictures


class Source(Protocol):
    """Pairs and backgrounds by index, to train and to validate on."""

    @property
    def pairs(self) -> int: ...

    @property
    def backgrounds(self) -> int: ...

    @property
    def valid_pairs(self) -> int: ...

    @property
    def valid_backgrounds(self) -> int: ...

    @property
    def fetch_ahead(self) -> int:
        """Number of examples worth fetching at the same time; 0 if pictures are at hand at once."""
        ...

    def open_pair(self, index: int, valid: bool = False) -> tuple[OpenImage, OpenImage]:
        """Open a foreground (RGB) and its alpha (grey), of the same size.

        Raises:
            UnreadableImage: one of them cannot be had, or their sizes differ.
            DataError: the storage does not answer.
        """
        ...

    def open_background(self, index: int, valid: bool = False) -> OpenImage:
        """Open a background (RGB). Raises as `open_pair` does."""
        ...

    def name_of(self, index: int, valid: bool = False) -> str:
        """Return the pair's name, for people."""
        ...


class FolderSource:
    """A `Source` over the files of a listing."""

    def __init__(
        self, listing: Listing, retry: RetryPolicy = READ_RETRY, decoding: int = DECODING
    ) -> None:
        """`decoding`: the version of how pictures are read."""
        self._listing, self._decoding = listing, decoding
        self._dataset = Roots(listing.dataset_url, retry, answered=True)
        self._backgrounds = Roots(listing.backgrounds_url, retry, answered=True)
        self.pairs = listing.counts["pairs"]
        self.backgrounds = listing.counts["backgrounds"]
        self.valid_pairs = listing.counts["valid_pairs"]
        self.valid_backgrounds = listing.counts["valid_backgrounds"]
        self.fetch_ahead = 4 if self._dataset.remote or self._backgrounds.remote else 0
        self._mattes = 0
        """Mattes opened so far, to train on."""

    def _split(self, valid: bool) -> Split:
        return self._listing.valid if valid else self._listing.train

    def open_pair(self, index: int, valid: bool = False) -> tuple[OpenImage, OpenImage]:
        row = self._split(valid).pair(index)
        fgr = self._open(self._dataset, FileRow(row.fgr, row.fgr_size), cut_out=True)
        look = not valid and self._looks()
        pha = self._open(self._dataset, FileRow(row.pha, row.pha_size), grey=True, look=look)
        if fgr.size != pha.size:
            raise UnreadableImage(
                fgr.path,
                f"is {fgr.size[0]} x {fgr.size[1]} pixels, but its alpha {row.pha} is "
                f"{pha.size[0]} x {pha.size[1]}{_SIDEWAYS if fgr.size == pha.size[::-1] else ''}",
            )
        return fgr, pha

    def open_background(self, index: int, valid: bool = False) -> OpenImage:
        return self._open(self._backgrounds, self._split(valid).background(index))

    def name_of(self, index: int, valid: bool = False) -> str:
        return self._split(valid).pair(index).name

    def _looks(self) -> bool:
        """Whether to look at the next matte's numbers: at the first ones, then at few, so that it costs next to nothing."""
        self._mattes += 1
        return self._mattes <= LOOKED_AT or self._mattes % LOOKED_AT_LATER == 0

    def _open(
        self,
        folder: Roots,
        row: FileRow,
        grey: bool = False,
        look: bool = False,
        cut_out: bool = False,
    ) -> EncodedImage:
        data = folder.read(row.path, row.size)
        return EncodedImage(data, folder.shown(row.path), grey, self._decoding, look, cut_out)


class SyntheticSource:
    """A `Source` of procedural pictures, `size` pixels square.

    Drawing a small picture costs more than training on it, and a small set is drawn again in every epoch: as many as
    fit into `CACHE_BYTES` are cached.
    """

    fetch_ahead = 0
    CACHE_BYTES = 128 * 2**20

    def __init__(self, count: int, seed: int, size: int, valid_count: int) -> None:
        self._seed = seed
        self._size = size
        kept = self.CACHE_BYTES // (size * size * 7)
        self._pair = lru_cache(maxsize=kept)(self._draw_pair)
        self._background = lru_cache(maxsize=kept)(self._draw_background)
        self.pairs = self.backgrounds = count
        self.valid_pairs = self.valid_backgrounds = valid_count

    def open_pair(self, index: int, valid: bool = False) -> tuple[OpenImage, OpenImage]:
        fgr, pha = self._pair(self._place(index, valid))
        name = self.name_of(index, valid)
        return RawImage(fgr, f"{name}/fgr"), RawImage(pha, f"{name}/pha")

    def open_background(self, index: int, valid: bool = False) -> OpenImage:
        pixels = self._background(self._place(index, valid))
        return RawImage(pixels, f"synthetic background {index}")

    def _draw_pair(self, place: int) -> tuple[Pixels, Pixels]:
        return synthetic_pair(self._seed, place, self._size)

    def _draw_background(self, place: int) -> Pixels:
        return synthetic_background(self._seed, place, self._size)

    def name_of(self, index: int, valid: bool = False) -> str:
        return f"synthetic {'valid' if valid else 'train'} pair {index}"

    @staticmethod
    def _place(index: int, valid: bool) -> int:
        return FIRST_VALID_SYNTHETIC + index if valid else index


@dataclass(frozen=True)
class SourceSpec:
    """Description of a source: tiny and picklable. Made by `listed` or `synthetic`."""

    listing_url: str = ""
    listing_digest: str = ""
    decoding: int = DECODING
    count: int = 0
    seed: int = 0
    size: int = 0
    valid_count: int = 0

    @classmethod
    def listed(cls, url: str, digest: str, decoding: int = DECODING) -> SourceSpec:
        """Describe the files of the listing kept at `url`, whose digest must be `digest`, and how they are read."""
        return cls(listing_url=url, listing_digest=digest, decoding=decoding)

    @classmethod
    def synthetic(
        cls, count: int, seed: int, size: int, valid_count: int | None = None
    ) -> SourceSpec:
        """Describe `count` procedural pairs and backgrounds of `size` x `size` pixels, and `valid_count` (default:
        `count`) to validate on."""
        valid = count if valid_count is None else valid_count
        return cls(count=count, seed=seed, size=size, valid_count=valid)

    def open(self) -> Source:
        """Return the source; the same object at every call in a process.

        Raises:
            DataError: the listing cannot be read, is damaged, or is not the one that the run began
                with.
        """
        return _open(self)


@lru_cache(maxsize=4)
def _open(spec: SourceSpec) -> Source:
    if spec.listing_url:
        listing = load_listing(spec.listing_url, spec.listing_digest)
        return FolderSource(listing, decoding=spec.decoding)
    return SyntheticSource(spec.count, spec.seed, spec.size, spec.valid_count)


def load_listing(url: str, digest: str) -> Listing:
    """Read a kept listing.

    Raises:
        NewerFormatError: a newer raymat wrote it. DataError: it cannot be read, is damaged, or has another digest.
    """
    folder, name = posixpath.split(url)
    try:
        listing = Listing.from_bytes(Folder(folder, answered=True).read(name))
    except (DataError, NewerFormatError) as error:
        kind = NewerFormatError if isinstance(error, NewerFormatError) else DataError
        raise kind(f"cannot use the dataset's listing {redact(url)}: {error}") from error
    if listing.digest != digest:
        raise DataError(
            f"the dataset's listing {redact(url)} is not the one that the run began with: expected digest "
            f"{digest[:16]}, got {listing.digest[:16]}; restore the file, or start a run with another --name"
        )
    return listing
