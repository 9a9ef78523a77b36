"""What stands beside the pixels in a JPEG, PNG or WebP: its blocks by name, without decoding anything."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

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


_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Of a pixel, by a PNG's type of colour."""


def without_extras(data: bytes) -> bytes:
    """Return a PNG with what its pixels need alone: its decoder prints remarks on the rest, without the file's name."""
    chunks = [] if data[:4] != b"\x89PNG" else [*_png_chunks(data)]
    if not chunks or all(_is_needed(*chunk, data[25]) for chunk in chunks):
        return data
    kept, at = [data[:8]], 8
    for name, content in chunks:
        end = at + 12 + len(content)
        if _is_needed(name, content, data[25]):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _is_needed(name: bytes, content: memoryview, colour: int) -> bool:
    if name == b"tRNS":
        return len(content) == {0: 2, 2: 6}.get(colour) or colour == 3
    return name in (b"IHDR", b"IDAT", b"IEND") or (name == b"PLTE" and colour == 3)


def png_fault(data: bytes) -> str | None:
    """Return what is wrong with a PNG's pixels, as far as checksums tell: its decoder would print that without the name."""
    at, pixels = 8, []
    for name, content in _png_chunks(data):
        at += 12 + len(content)
        if name != b"IDAT":
            continue
        pixels.append(content)
        if zlib.crc32(content, zlib.crc32(name)).to_bytes(4, "big") != data[at - 4 : at]:
            return "a checksum of its pixels is wrong"
    head = int.from_bytes(pixels[0][:2], "big") if pixels else 1
    return "its pixels are not compressed as a PNG's are" if head % 31 else None


def png_is_whole(data: bytes) -> bool:
    """Whether a PNG's compressed pixels end where they should."""
    inflate = zlib.decompressobj()
    try:
        for name, content in _png_chunks(data):
            if name == b"IDAT":
                rest = bytes(content)
                while rest and not inflate.eof:
                    inflate.decompress(rest, 2**20)
                    rest = inflate.unconsumed_tail
    except zlib.error:
        return False
    return inflate.eof


def png_bytes(data: bytes) -> int:
    """Return the size in bytes of a PNG's pixels before they are compressed. Raises struct.error."""
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    return int(height * (1 + width * bits * _CHANNELS.get(colour, 1) // 8))


class JpegFrame(NamedTuple):
    """What a JPEG's frame header says."""

    width: int
    height: int
    bits: int
    """Of a sample."""
    process: int
    """The marker's low byte: 0xC0 is baseline."""
    sampling: tuple[tuple[int, int], ...]
    """Each component's horizontal and vertical sampling factor."""

    @property
    def lossless(self) -> bool:
        return self.process in (0xC3, 0xC7, 0xCB, 0xCF)

    @property
    def coefficients(self) -> int:
        """Bytes of coefficients that decoding keeps in memory: none unless it is progressive."""
        if self.process not in (0xC2, 0xC6, 0xCA, 0xCE):
            return 0
        blocks = sum(h * v for h, v in self.sampling)
        most = max(h for h, _ in self.sampling) * max(v for _, v in self.sampling)
        return 2 * self.width * self.height * blocks // most


def jpeg_frame(data: bytes) -> JpegFrame:
    """Read the frame header of a JPEG. Raises ValueError if there is none."""
    for name, content in blocks_of(data):
        if 0xC0 <= name[0] <= 0xCF and name not in (b"\xc4", b"\xc8", b"\xcc"):
            bits, height, width, count = struct.unpack_from(">BHHB", content)
            factors = bytes(content[7 : 6 + 3 * count : 3])
            sampling = tuple((f >> 4, f & 15) for f in factors)
            if width and height and sampling and all(h and v for h, v in sampling):
                return JpegFrame(width, height, bits, name[0], sampling)
            break
    raise ValueError("it has no frame header")


_FILLING = bytes(1 + i * 73 % 251 for i in range(4096))


def with_filling(data: bytes) -> bytes:
    """Return a JPEG with arbitrary bytes between its pixels and its end marker: they are decoded only where pixels lack."""
    head = 2 + sum(4 + len(content) for _, content in _segments(data))
    end = data.find(_JPEG_END, head)
    return data + _FILLING + _JPEG_END if end < 0 else data[:end] + _FILLING + data[end:]


def without_padding(data: bytes) -> bytes | None:
    """Return a JPEG without the equal bytes that stand between its pixels and its end marker; None if there are none."""
    head = 2 + sum(4 + len(content) for _, content in _segments(data))
    end = data.find(_JPEG_END, head)
    begin = len(data[:end].rstrip(data[end - 1 : end]))
    if data[begin - 1] == 0xFF:  # with a zero behind it, it is one of the pixels'
        begin += 1
    return data[:begin] + data[end:] if begin + 1 < end else None
