"""What phones and tools make of ordinary formats: pictures behind pictures, few bits, rows out of order."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from raymat.data.decode import EncodedImage, Pixels
from tests.support.datakit import disc, encode, photo


def read(data: bytes, grey: bool) -> Pixels:
    return EncodedImage(data, "a", grey).decode()


def second_picture() -> bytes:
    buffer = io.BytesIO()
    first, second = (Image.fromarray(photo(seed)) for seed in (1, 2))
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["a second picture", "a map of depth or gain", "a moving picture"])
def test_what_phones_put_behind_a_jpeg_changes_none_of_its_pixels(kind: str) -> None:
    alone = encode(photo(1), "JPEG", quality=95)
    behind = {
        "a second picture": second_picture(),
        "a map of depth or gain": alone + encode(disc(2), "JPEG", quality=60),
        "a moving picture": alone + b"\0\0\0\x18ftypmp42" + bytes(5000),
    }[kind]
    with Image.open(io.BytesIO(alone)) as image:
        shown = np.asarray(image.convert("RGB"))
    assert np.array_equal(read(behind, grey=False), shown)


def png(rows: list[bytes], bits: int, colour: int, interlaced: int, size: tuple[int, int]) -> bytes:
    """A PNG of unfiltered rows."""
    head = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_mattes_of_few_bits_fill_the_whole_range(bits: int) -> None:
    most = 2**bits - 1
    values = disc(5).astype(int) * most // 255
    packed = [
        int("".join(f"{v:0{bits}b}" for v in row), 2).to_bytes(len(row) * bits // 8, "big")
        for row in values
    ]
    found = read(png(packed, bits, 0, 0, (96, 64)), grey=True)
    assert np.array_equal(found, values * (255 // most))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_interlaced_png_is_the_picture(channels: int) -> None:
    picture = np.dstack([photo(1), disc(5)])[..., [3] if channels == 1 else range(channels)]
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = [row.tobytes() for x, y, dx, dy in passes for row in picture[y::dy, x::dx]]
    data = png(rows, 8, {1: 0, 3: 2, 4: 6}[channels], 1, (96, 64))
    if channels > 1:
        assert np.array_equal(read(data, grey=False), photo(1))
    if channels != 3:
        assert np.array_equal(read(data, grey=True), disc(5))
