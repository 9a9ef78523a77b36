"""What every viewer shows whole is read, what lacks pixels is refused, and a small file does not cost much memory."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.decode import SCALES, EncodedImage, Pixels
from tests.support.datakit import disc, encode, photo

PHOTO, MATTE = photo(1), disc(1)
RGBA = np.dstack([PHOTO, MATTE])
JPEG = encode(PHOTO, "JPEG", quality=95)
END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def png(pixels: Pixels, *, halves: int = 2) -> bytes:
    """A PNG whose pixels lie in two chunks, or in the first of these only, without an end."""
    whole = encode(pixels, "PNG")
    content, at = b"", whole.index(b"IDAT") - 4
    head = whole[:at]
    while whole[at + 4 : at + 8] == b"IDAT":
        (length,) = struct.unpack_from(">I", whole, at)
        content, at = content + whole[at + 8 : at + 8 + length], at + 12 + length
    middle = len(content) // 2
    for part in (content[:middle], content[middle:])[:halves]:
        head += struct.pack(">I", len(part)) + b"IDAT" + part
        head += struct.pack(">I", zlib.crc32(b"IDAT" + part))
    return head


def with_text(pixels: Pixels) -> bytes:
    info, buffer = PngInfo(), io.BytesIO()
    info.add_text("history", "y" * (3 * 2**20), zip=True)
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_without_its_end_is_whole(cut: int) -> None:
    for scale in SCALES:
        found = EncodedImage(JPEG[:-cut], "a").decode(scale)
        assert np.array_equal(found, EncodedImage(JPEG, "a").decode(scale))


@pytest.mark.parametrize("end", [b"", END[:5], END + b"and more"])
def test_a_png_without_its_end_is_whole(end: bytes) -> None:
    assert np.array_equal(EncodedImage(png(PHOTO) + end, "a").decode(), PHOTO)
    assert np.array_equal(EncodedImage(png(MATTE) + end, "a", grey=True).decode(), MATTE)
    assert np.array_equal(EncodedImage(png(RGBA) + end, "a", grey=True).decode(), MATTE)


def test_a_long_text_in_a_png_is_passed_over() -> None:
    assert np.array_equal(EncodedImage(with_text(PHOTO), "a").decode(), PHOTO)
    assert np.array_equal(EncodedImage(with_text(RGBA), "a", grey=True).decode(), MATTE)


@pytest.mark.parametrize("end", [b"", END])
def test_what_lacks_pixels_is_refused_with_an_end_and_without_one(end: bytes) -> None:
    for pixels, grey in ((PHOTO, False), (MATTE, True), (RGBA, True)):
        with pytest.raises(UnreadableImage):
            EncodedImage(png(pixels, halves=1) + end, "a", grey).decode()
        with pytest.raises(UnreadableImage):
            EncodedImage(png(pixels)[:-30] + end, "a", grey).decode()
    for cut in (3, 30, 300, len(JPEG) // 2):
        for tail in (b"", b"\xff\xd9"):
            with pytest.raises(UnreadableImage):
                EncodedImage(JPEG[:-cut] + tail, "a").decode()


def test_a_run_that_began_before_replaces_the_same_files() -> None:
    for data in (JPEG[:-2], png(PHOTO), with_text(PHOTO)):
        with pytest.raises(UnreadableImage):
            EncodedImage(data, "a", decoding=1).decode()


def test_a_png_may_have_as_many_pixels_as_a_jpeg() -> None:
    large = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(large, "PNG")
    assert EncodedImage(large.getvalue(), "a").size == (14_000, 14_000)
    with pytest.raises(UnreadableImage, match="is 14000 x 14000 pixels: too large"):
        EncodedImage(large.getvalue(), "a", decoding=1)
    Image.new("1", (20_000, 14_000)).save(large := io.BytesIO(), "PNG")
    with pytest.raises(UnreadableImage, match="is 20000 x 14000 pixels: too large"):
        EncodedImage(large.getvalue(), "a", decoding=2)


def test_a_jpeg_that_claims_more_than_it_can_hold_is_refused_by_its_header() -> None:
    claiming = bytearray(JPEG)
    at = claiming.index(b"\xff\xc0") + 5
    claiming[at : at + 4] = struct.pack(">HH", 16_000, 16_000)
    with pytest.raises(UnreadableImage, match=r"claims 16000 x 16000 pixels in \d+ bytes"):
        EncodedImage(bytes(claiming), "a")
    for options in ({}, {"progressive": True, "optimize": True}):
        blank = encode(np.full((4_000, 4_000, 3), 255, np.uint8), "JPEG", quality=30, **options)
        assert EncodedImage(blank, "a").size == (4_000, 4_000)
