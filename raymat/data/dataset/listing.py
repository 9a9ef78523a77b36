"""Listings of datasets: made once when a run begins, and kept with the run.

The listing's digest covers names and sizes but not the place, so that a copy of a dataset in another
bucket is the same dataset.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raymat.errors import DataError, NewerFormatError
from raymat.storage.fields import Count, parse_fields, parse_object

_PREFIX = "raymat-listing-"
_NUMBER = 1
FORMAT = f"{_PREFIX}{_NUMBER}"


class FileRow(NamedTuple):
    """File: its path below the listing's URL, and its size in bytes (-1: unknown)."""

    path: str
    size: int


class PairRow(NamedTuple):
    """Foreground and its alpha: their common name, and each one's path and size in bytes (-1: unknown)."""

    name: str
    fgr: str
    fgr_size: int
    pha: str
    pha_size: int


@dataclass(frozen=True, eq=False)
class Files:
    """Images of one folder, sorted by stem (path without extension); stored as columns, since there may be very many."""

    folder: str
    stems: list[str]
    suffixes: list[str]
    """The extensions that occur, sorted."""
    codes: NDArray[np.uint8]
    """Each file's extension, as its place in `suffixes`."""
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.stems)

    def row(self, index: int) -> FileRow:
        suffix = self.suffixes[self.codes[index]]
        return FileRow(f"{self.folder}/{self.stems[index]}{suffix}", int(self.sizes[index]))


@dataclass(frozen=True, eq=False)
class Split:
    """Files of train/ or of valid/; `fgr` and `pha` have the same stems."""

    fgr: Files
    pha: Files
    backgrounds: Files

    def pair(self, index: int) -> PairRow:
        fgr, pha = self.fgr.row(index), self.pha.row(index)
        return PairRow(self.fgr.stems[index], fgr.path, fgr.size, pha.path, pha.size)

    def background(self, index: int) -> FileRow:
        return self.backgrounds.row(index)


@dataclass(frozen=True, eq=False)
class Listing:
    """Pairs and backgrounds of a dataset, in the order in which `SampleOrder` numbers them."""

    dataset_url: str
    backgrounds_url: str
    train: Split
    valid: Split
    digest: str
    """SHA-256 (64 hexadecimal characters) of all names and sizes."""

    @classmethod
    def of(cls, dataset_url: str, backgrounds_url: str, train: Split, valid: Split) -> Listing:
        """Make a listing with its digest."""
        digest = hashlib.sha256(_content(train, valid)).hexdigest()
        return cls(dataset_url, backgrounds_url, train, valid, digest)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of pairs and backgrounds to train and to validate on."""
        return {
            "pairs": len(self.train.fgr),
            "backgrounds": len(self.train.backgrounds),
            "valid_pairs": len(self.valid.fgr),
            "valid_backgrounds": len(self.valid.backgrounds),
        }

    @property
    def files(self) -> int:
        """Number of files."""
        return sum(len(f) for s in (self.train, self.valid) for f in (s.fgr, s.pha, s.backgrounds))

    def to_bytes(self) -> bytes:
        """Return the listing as a compressed file; equal listings give equal bytes."""
        head = {
            "format": FORMAT,
            "dataset": self.dataset_url,
            "backgrounds": self.backgrounds_url,
            "digest": self.digest,
        }
        return zlib.compress(b"\n".join([_json(head), _content(self.train, self.valid)]), 6)

    @classmethod
    def from_bytes(cls, data: bytes) -> Listing:
        """Parse what `to_bytes` returned.

        Raises:
            NewerFormatError: a newer raymat wrote it. DataError: the bytes are not a listing, or not as they were written.
        """
        try:
            head, content = zlib.decompress(data).split(b"\n", 1)
            values = parse_object(head)
            _refuse_newer(values.get("format"))
            described = parse_fields(_Head, values)
            if described.format != FORMAT:
                raise ValueError(f"its format is {described.format}, not {FORMAT}")
            if hashlib.sha256(content).hexdigest() != described.digest:
                raise ValueError("its digest does not match")
            train, valid = _read_content(content)
        except (zlib.error, ValueError, LookupError) as error:
            raise DataError(f"the dataset's listing is damaged ({error})") from error
        return cls(described.dataset, described.backgrounds, train, valid, described.digest)


@dataclass(frozen=True)
class _Head:
    """The first line of a listing's file."""

    format: str
    dataset: str
    backgrounds: str
    digest: str


@dataclass(frozen=True)
class _Meta:
    """What the second line says of the blobs behind it."""

    counts: list[Count]
    suffixes: list[list[str]]
    lengths: list[Count]


def _refuse_newer(found: object) -> None:
    number = found.removeprefix(_PREFIX) if isinstance(found, str) else ""
    if number.isascii() and number.isdigit() and int(number) > _NUMBER:
        raise NewerFormatError(
            f"it has format {found}, this version reads {FORMAT}: use the raymat that wrote it"
        )


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _content(train: Split, valid: Split) -> bytes:
    """Return what the digest covers: a line that describes the blobs, and the blobs."""
    folders = [f for split in (train, valid) for f in (split.fgr, split.pha, split.backgrounds)]
    blobs = [*_split_blobs(train), *_split_blobs(valid)]
    meta = {
        "counts": [len(files) for files in folders],
        "suffixes": [files.suffixes for files in folders],
        "lengths": [len(blob) for blob in blobs],
    }
    return b"\n".join([_json(meta), b"".join(blobs)])


def _split_blobs(split: Split) -> list[bytes]:
    """Return the blobs: names once for both halves of the pairs, then each folder's extensions and sizes."""
    return [
        _join(split.fgr.stems),
        _join(split.backgrounds.stems),
        *(
            blob
            for files in (split.fgr, split.pha, split.backgrounds)
            for blob in (files.codes.tobytes(), _pack_sizes(files.sizes))
        ),
    ]


def _join(stems: list[str]) -> bytes:
    return "\0".join(stems).encode(errors="surrogateescape")


def _cut(blob: bytes, count: int) -> list[str]:
    stems = blob.decode(errors="surrogateescape").split("\0") if count else []
    if len(stems) != count:
        raise ValueError(f"{len(stems)} names for {count} files")
    return stems


def _pack_sizes(sizes: NDArray[np.int64]) -> bytes:
    """Pack all lowest bytes, then all second bytes and so on: the high ones are nearly all zero and compress away."""
    return np.ascontiguousarray(sizes.astype("<i8").view(np.uint8).reshape(-1, 8).T).tobytes()


def _unpack_sizes(blob: bytes, count: int) -> NDArray[np.int64]:
    planes = np.frombuffer(blob, np.uint8).reshape(8, count)
    return np.ascontiguousarray(planes.T).view("<i8").reshape(count).astype(np.int64)


def _read_content(content: bytes) -> tuple[Split, Split]:
    meta_line, body = content.split(b"\n", 1)
    meta = parse_fields(_Meta, parse_object(meta_line))
    ends = [0, *itertools.accumulate(meta.lengths)]
    blobs = [body[a:b] for a, b in itertools.pairwise(ends)]
    half = len(blobs) // 2
    return (
        _read_split("train", blobs[:half], meta.counts[:3], meta.suffixes[:3]),
        _read_split("valid", blobs[half:], meta.counts[3:], meta.suffixes[3:]),
    )


def _read_split(
    name: str, blobs: list[bytes], counts: list[int], suffixes: list[list[str]]
) -> Split:
    pairs = _cut(blobs[0], counts[0])
    stems = (pairs, pairs, _cut(blobs[1], counts[2]))
    return Split(
        *(
            Files(
                folder=f"{name}{below}",
                stems=stems[i],
                suffixes=suffixes[i],
                codes=np.frombuffer(blobs[2 + 2 * i], np.uint8),
                sizes=_unpack_sizes(blobs[3 + 2 * i], counts[i]),
            )
            for i, below in enumerate(("/fgr", "/pha", ""))
        )
    )
