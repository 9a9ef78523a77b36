"""Mattes as tools write them: in an alpha channel, as masks of 0 and 1, in one colour, with fewer bits than the file has."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.decode import SCALES, EncodedImage, Pixels, shrink
from tests.support.datakit import disc, encode, photo

MATTE = disc(5)
FULL = np.where(MATTE > 127, 255, 0).astype(np.uint8)
PHOTO = photo(6)


def read(data: bytes, decoding: int = 7) -> Pixels:
    return EncodedImage(data, "pha/a.png", grey=True, decoding=decoding).decode()


def png16(values: Any, clear: bytes = b"") -> bytes:
    """A PNG of 16 bits; `clear`: the value that is transparent."""
    data = cv2.imencode(".png", values.astype(np.uint16))[1].tobytes()
    chunk = b"tRNS" + clear
    named = struct.pack(">I", len(clear)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + named + data[33:] if clear else data


def channels(*planes: Pixels) -> Pixels:
    return np.dstack(planes)


def palette(indices: Pixels, colours: list[int], **more: Any) -> bytes:
    image = Image.fromarray(indices, "L").convert("P")
    image.putdata(indices.reshape(-1).tolist())
    image.putpalette(colours)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **more)
    return buffer.getvalue()


def tiff(values: Any, meaning: int, *extra: int) -> bytes:
    """A TIFF of one strip whose numbers mean grey from white (0), grey from black (1) or RGB (2); `extra` as in ExtraSamples."""
    planes = 1 if values.ndim == 2 else values.shape[2]
    body = values.tobytes()
    kind = 3 if values.dtype.kind == "f" else 1
    tags = [
        *((256, values.shape[1]), (257, values.shape[0]), (258, 8 * values.itemsize), (259, 1)),
        *((262, meaning), (273, 8), (277, planes), (279, len(body)), *((338, e) for e in extra)),
        (339, kind),
    ]
    more, table = b"", struct.pack("<H", len(tags))
    for tag, value in tags:
        if tag == 258 and planes > 2:  # too many to stand in the table
            where = 8 + len(body) + 2 + 12 * len(tags) + 4
            table += struct.pack("<HHII", tag, 3, planes, where)
            more = struct.pack("<H", value) * planes
        elif tag in (258, 339) and planes == 2:
            table += struct.pack("<HHIHH", tag, 3, 2, value, value)
        else:
            table += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + table + bytes(4) + more


def bmp(values: Pixels) -> bytes:
    """A BMP of 32 bits (h, w, 4) whose header names no alpha channel, as Windows writes it."""
    height, width = values.shape[:2]
    body = np.ascontiguousarray(values[::-1, :, [2, 1, 0, 3]]).tobytes()
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 32, 0, len(body), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + head + body


SMALL = np.zeros_like(MATTE)
SMALL[:9, :9] = 1
SMALL[1:8, 1:8] = 2
GREYS = np.where(FULL, PHOTO[..., 0], 0).astype(np.uint8)
ZERO, ONES = np.zeros_like(MATTE), np.full_like(MATTE, 255)
NOISE = np.where(np.arange(MATTE.size).reshape(MATTE.shape) % 7, 255, 240).astype(np.uint8)
FOUND: dict[str, tuple[bytes, Pixels, int]] = {
    "rgba png": (encode(channels(*PHOTO.transpose(2, 0, 1), MATTE), "PNG"), MATTE, 0),
    "la png": (encode(channels(PHOTO[..., 0], MATTE), "PNG"), MATTE, 0),
    "rgba webp": (encode(channels(*PHOTO.transpose(2, 0, 1), MATTE), "WEBP", quality=80), MATTE, 2),
    "rgba 16 bits": (
        png16(channels(*PHOTO.transpose(2, 0, 1), MATTE).astype(np.uint16) * 257), MATTE, 0,
    ),
    "rgba, no colours": (encode(channels(ZERO, ZERO, ZERO, MATTE), "PNG"), MATTE, 0),
    "grey in rgba, all opaque": (encode(channels(MATTE, MATTE, MATTE, ONES), "PNG"), MATTE, 0),
    "grey in la, all opaque": (encode(channels(MATTE, ONES), "PNG"), MATTE, 0),
    "grey": (encode(MATTE, "PNG"), MATTE, 0),
    "grey as rgb": (encode(channels(MATTE, MATTE, MATTE), "PNG"), MATTE, 0),
    "grey webp": (encode(channels(MATTE, MATTE, MATTE), "WEBP", quality=90), MATTE, 12),
    "mask of 0 and 1": (encode(FULL // 255, "PNG"), FULL, 0),
    "mask of 0 and 1 as rgb": (encode(channels(*[FULL // 255] * 3), "PNG"), FULL, 0),
    "mask of 0 and 1, 16 bits": (png16(FULL // 255), FULL, 0),
    "bitmap": (encode(FULL > 0, "PNG"), FULL, 0),
    "16 bits": (png16(MATTE.astype(np.uint16) * 257), MATTE, 0),
    "12 bits in 16": (png16(MATTE.astype(int) * 4095 // 255), MATTE, 1),
    "10 bits in 16": (png16(MATTE.astype(int) * 1023 // 255), MATTE, 1),
    "8 bits in 16": (png16(MATTE.astype(np.uint16)), MATTE, 0),
    "faint, 16 bits": (png16(MATTE.astype(np.uint16) * 64), MATTE // 4, 1),
    "in red": (encode(channels(MATTE, ZERO, ZERO), "PNG"), MATTE, 0),
    "in green": (encode(channels(ZERO, MATTE, ZERO), "PNG"), MATTE, 0),
    "in blue": (encode(channels(ZERO, ZERO, MATTE), "PNG"), MATTE, 0),
    "palette of greys": (palette(MATTE, [i for i in range(256) for _ in range(3)]), MATTE, 0),
    "palette with alphas": (
        palette(MATTE, [200, 30, 30] * 256, transparency=bytes(range(256))), MATTE, 0,
    ),
    "one object of DAVIS": (palette(FULL // 255, [0, 0, 0, 128, 0, 0]), FULL, 0),
    "a person of VOC": (palette(FULL // 255, [0, 0, 0, 192, 128, 128]), FULL, 0),
    "14 bits in 16": (png16(MATTE.astype(int) * 16383 // 255), MATTE, 1),
    "15 bits in 16": (png16(MATTE.astype(int) * 32767 // 255), MATTE, 1),
    "tiff from white": (tiff(255 - MATTE, 0), MATTE, 0),
    "tiff from white, 16 bits": (tiff(65535 - MATTE.astype("<u2") * 257, 0), MATTE, 0),
    "tiff from white, fractions": (tiff(1 - (MATTE / 255).astype("<f4"), 0), MATTE, 0),
    "tiff from black, 16 bits": (tiff(MATTE.astype("<u2") * 257, 1), MATTE, 0),
    "tiff, alpha": (tiff(channels(*PHOTO.transpose(2, 0, 1), MATTE), 2, 2), MATTE, 0),
    "tiff, a channel without a name": (
        tiff(channels(*PHOTO.transpose(2, 0, 1), MATTE), 2, 0), MATTE, 0,
    ),
    "tiff, one beside grey": (tiff(channels(PHOTO[..., 0], MATTE), 1, 0), MATTE, 0),
    "grey, its black named transparent": (encode(MATTE, "PNG", transparency=0), MATTE, 0),
    "16 bits, their black named transparent": (png16(MATTE.astype(int) * 257, b"\0\0"), MATTE, 0),
    "rgb, its black named transparent": (
        encode(channels(MATTE, MATTE, MATTE), "PNG", transparency=(0, 0, 0)), MATTE, 0,
    ),
    "rgba, clear where it is black": (
        encode(channels(MATTE, MATTE, MATTE, (MATTE > 0) * np.uint8(255)), "PNG"), MATTE, 0,
    ),
    "a grey photograph, cut out": (
        encode(channels(GREYS, GREYS, GREYS, FULL), "PNG"), FULL, 0,
    ),
    "a silhouette of white, cut out": (encode(FULL, "PNG", transparency=0), FULL, 0),
    "bmp, its fourth channel": (bmp(channels(*PHOTO.transpose(2, 0, 1), MATTE)), MATTE, 0),
    "bmp, black with a fourth channel": (bmp(channels(ZERO, ZERO, ZERO, MATTE)), MATTE, 0),
    "bmp, an empty fourth channel": (bmp(channels(MATTE, MATTE, MATTE, ZERO)), MATTE, 0),
    "grey beside an opaque channel with noise": (encode(channels(MATTE, NOISE), "PNG"), MATTE, 0),
    "empty": (encode(ZERO, "PNG"), ZERO, 0),
    "full": (encode(ONES, "PNG"), ONES, 0),
    "empty rgba": (encode(channels(ZERO, ZERO, ZERO, ZERO), "PNG"), ZERO, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_the_matte_is_found_where_it_is(case: str) -> None:
    data, truth, tolerance = FOUND[case]
    assert np.abs(read(data).astype(int) - truth).max() <= tolerance
    for scale in SCALES:
        found = EncodedImage(data, "a", grey=True).decode(scale)
        assert np.abs(found.astype(int) - shrink(read(data), scale)).max() <= 1


@pytest.mark.parametrize(
    ("case", "data"),
    [
        ("photograph", encode(PHOTO, "PNG")),
        ("opaque photograph", encode(channels(*PHOTO.transpose(2, 0, 1), ONES), "PNG")),
        ("webp", encode(PHOTO, "WEBP")),
        # Classes of PASCAL VOC: aeroplane, bicycle and the void around them.
        (
            "classes",
            palette((MATTE > 99).astype(np.uint8) + (MATTE > 200), [0, 0, 0, 128, 0, 0, 0, 128, 0]),
        ),
        # Its person, a fiftieth of the picture, and the void.
        (
            "a small class",
            palette(
                (SMALL > 0).astype(np.uint8) + (SMALL > 1),
                [0, 0, 0, 224, 224, 192, 192, 128, 128],
            ),
        ),
    ],
)
def test_colours_are_no_matte_and_the_line_says_so(case: str, data: bytes) -> None:
    with pytest.raises(UnreadableImage) as refused:
        read(data)
    assert refused.value.reason == "is a colour picture, not a matte"
    assert refused.value.path == "pha/a.png"


def test_a_run_that_began_before_reads_mattes_as_it_began() -> None:
    inked = encode(channels(*PHOTO.transpose(2, 0, 1), MATTE), "PNG")
    before = cv2.imdecode(np.frombuffer(inked, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(read(inked, decoding=1), before)
    assert read(FOUND["mask of 0 and 1"][0], decoding=1).max() == 1
    assert read(FOUND["12 bits in 16"][0], decoding=1).max() == 15
    assert read(FOUND["one object of DAVIS"][0], decoding=4).max() == 128
    named = "grey, its black named transparent"
    assert np.array_equal(read(FOUND[named][0], decoding=5), (MATTE > 0) * np.uint8(255))
    with pytest.raises(UnreadableImage):
        read(FOUND["bmp, its fourth channel"][0], decoding=6)
    noisy = FOUND["grey beside an opaque channel with noise"][0]
    assert np.array_equal(read(noisy, decoding=6), NOISE)
    white = "tiff from white, 16 bits"
    assert np.abs(255 - read(FOUND[white][0], decoding=4).astype(int) - MATTE).max() == 0


def test_foregrounds_and_backgrounds_are_read_as_before() -> None:
    for data in (FOUND["rgba png"][0], encode(PHOTO, "PNG")):
        assert np.array_equal(EncodedImage(data, "fgr/a.png").decode(), PHOTO)


def test_a_cut_off_matte_is_refused() -> None:
    data = FOUND["rgba png"][0]
    with pytest.raises(UnreadableImage):
        read(data[: len(data) // 2])
