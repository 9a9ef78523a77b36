"""EXIF orientation: how a camera held a picture, and turning its pixels upright.

Phones store all pictures as their sensor lies and say in a tag how to turn them; every viewer and every mask tool does so.
The tag is looked for where the formats put it (a JPEG's APP1 segment, a PNG's eXIf chunk, WebP's EXIF chunk), without
decoding anything. Where EXIF has none, XMP beside it may have one, which Adobe's programs write.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Collection
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from raymat.data.decoding.blocks import EXIF_NAMES, blocks_of

ORIENTATION_TAG = 0x0112
SHORT = 3
"""The type that the tag should have."""
WHOLE = {SHORT: "H", 4: "I"}
"""That type and the long one that some programs write, by their codes in EXIF, with their letters in `struct`."""
_HEAD = b"Exif\0\0"
_XMP_HEADS = {
    b"\xe1": b"http://ns.adobe.com/xap/1.0/\0",
    b"iTXt": b"XML:com.adobe.xmp\0",
    b"XMP ": b"",
}
"""What XMP begins with in the blocks that may hold it: a JPEG's APP1, PNG's and WebP's."""
_XMP_TAG = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|\s*>\s*)([1-8])")
_MOST_BYTES = 4 * 2**20
"""Of compressed XMP."""

T = TypeVar("T", bound=np.generic)


class Orientation(NamedTuple):
    """What makes stored pixels upright: exchange rows and columns, then mirror."""

    transposed: bool = False
    upside_down: bool = False
    """Whether the rows are mirrored, after the exchange."""
    mirrored: bool = False
    """Whether the columns are mirrored, after the exchange."""

    @classmethod
    def of_tag(cls, value: int | None) -> Orientation:
        """Return the orientation that a tag's value names; upright for none and for unknown values."""
        return _BY_TAG.get(value or 0, UPRIGHT)

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Return the upright width and height of a picture with the `stored` ones."""
        return (stored[1], stored[0]) if self.transposed else stored

    def apply(self, pixels: NDArray[T]) -> NDArray[T]:
        """Return stored pixels (h, w) or (h, w, channels) upright."""
        if self == UPRIGHT:
            return pixels
        turned = pixels.swapaxes(0, 1) if self.transposed else pixels
        rows, columns = (slice(None, None, -1 if f else 1) for f in self[1:])
        return np.ascontiguousarray(turned[rows, columns])


UPRIGHT = Orientation()
_BY_TAG = {
    2: Orientation(mirrored=True),
    3: Orientation(upside_down=True, mirrored=True),
    4: Orientation(upside_down=True),
    5: Orientation(transposed=True),
    6: Orientation(transposed=True, mirrored=True),
    7: Orientation(transposed=True, upside_down=True, mirrored=True),
    8: Orientation(transposed=True, upside_down=True),
}
"""By the tag's value: https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf, 4.6.4 A. All others are upright."""


def orientation_of(
    data: bytes, kinds: Collection[int] = WHOLE, with_xmp: bool = True
) -> Orientation:
    """Return the orientation of an encoded JPEG, PNG or WebP; upright where none is stated, or not legibly.

    `kinds`: types in which EXIF's tag is read. `with_xmp`: whether XMP counts where EXIF has none.
    """
    stated = 0
    for name, content in blocks_of(data):
        # A JPEG's APP1 may hold something else.
        if name in EXIF_NAMES and (name != b"\xe1" or content[:6] == _HEAD):
            try:
                found = _tag(bytes(content).removeprefix(_HEAD), kinds)
            except struct.error:
                found = 0
            if found or not with_xmp:
                return Orientation.of_tag(found)
        elif with_xmp and not stated:
            stated = _stated_by_xmp(name, content)
    return Orientation.of_tag(stated)


def _stated_by_xmp(name: bytes, content: memoryview) -> int:
    """Return what the XMP in a block says; 0 without any."""
    head = _XMP_HEADS.get(name)
    if head is None or content[: len(head)] != head:
        return 0
    text = bytes(content[len(head) :])
    if (
        name == b"iTXt" and text[:1] == b"\1"
    ):  # compressed: method, language, a zero, keyword, a zero
        packed = text[2:].split(b"\0", 2)
        try:
            text = zlib.decompressobj().decompress(packed[-1], _MOST_BYTES)
        except zlib.error:
            return 0
    found = _XMP_TAG.search(text)
    return int(found[1]) if found else 0


def _tag(tiff: bytes, kinds: Collection[int]) -> int:
    """Return the value of the orientation tag in the first directory of a TIFF structure; 0 without one."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 0
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(count):
        at = start + 2 + 12 * entry
        tag, kind, values = struct.unpack_from(f"{order}HHI", tiff, at)
        if tag == ORIENTATION_TAG:
            is_read = kind in kinds and values == 1
            return int(struct.unpack_from(order + WHOLE[kind], tiff, at + 8)[0]) if is_read else 0
    return 0
