"""What stands beside the pixels in a JPEG, PNG or WebP: its blocks by name, without decoding anything."""

from __future__ import annotations

import struct
from collections.abc import Iterator

EXIF_NAMES = (b"\xe1", b"eXIf", b"EXIF")
"""Blocks that may hold EXIF: a JPEG's APP1, PNG's and WebP's."""
ICC_NAMES = (b"\xe2", b"iCCP", b"ICCP")
"""Blocks that may hold a colour profile: a JPEG's APP2, PNG's and WebP's."""


def blocks_of(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the name and content of each block: a JPEG's segments before its pixels, by their marker, or a PNG's or WebP's
    chunks. Ends where the file is cut off or is none of these."""
    try:
        if data[:2] == b"\xff\xd8":
            yield from _segments(data)
        elif data[:8] == b"\x89PNG\r\n\x1a\n":
            yield from _png_chunks(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            yield from _webp_chunks(data)
    except (struct.error, IndexError):
        return


def _segments(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), 2
    while data[at] == 0xFF:
        kind = data[at + 1]
        if kind == 0xFF:  # a fill byte
            at += 1
            continue
        if kind in (0xDA, 0xD9):  # the pixels, the end
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield data[at + 1 : at + 2], view[at + 4 : at + 2 + length]
        at += 2 + length


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, view[at + 8 : at + 8 + length]
        at += 12 + length


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view, at = memoryview(data), 12
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, view[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


_JPEG_END = b"\xff\xd9"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def with_end(data: bytes) -> bytes:
    """Return a JPEG or PNG with an end marker behind what is whole of it. Whether that is all pixels, its decoder finds out."""
    if data[:2] == b"\xff\xd8":
        return data + _JPEG_END
    at = 8
    for _, content in _png_chunks(data):
        if at + 12 + len(content) > len(data):
            break
        at += 12 + len(content)
    return data[:at] + _PNG_END


def lacks_end(data: bytes) -> bool:
    """Whether a PNG has no end marker, which decoders demand and viewers do not miss."""
    return data[:4] == b"\x89PNG" and _PNG_END not in data[-64:]


def without_texts(data: bytes) -> bytes:
    """Return a PNG without its texts, which may inflate to more than a decoder takes."""
    kept, at = [data[:8]], 8
    for name, content in _png_chunks(data):
        end = at + 12 + len(content)
        if name not in _PNG_TEXTS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)
