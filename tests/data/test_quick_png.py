"""Plain PNGs are decoded by a quicker decoder, whose pixels and refusals are those of the ones before it."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
from PIL import Image

from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.decode import EncodedImage, Pixels
from raymat.data.decoding.header import read_header
from raymat.data.decoding.quick_png import decode_png
from tests.support.datakit import disc, encode, photo

PHOTO, MATTE = photo(1, 97, 61), disc(1, 97, 61)
PLAIN: dict[str, Pixels] = {
    "grey": MATTE,
    "colours": PHOTO,
    "grey as colours": np.dstack([MATTE] * 3),
    "colours and alpha": np.dstack([PHOTO, MATTE]),
    "opaque": np.dstack([MATTE, MATTE, MATTE, np.full_like(MATTE, 255)]),
    "a mask of 0 and 1": MATTE // 128,
    "one pixel": MATTE[:1, :1],
}


def paletted(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("P").save(buffer, "PNG")
    return buffer.getvalue()


OTHERS = {
    "grey and alpha": encode(np.dstack([MATTE, 255 - MATTE]), "PNG"),
    "1 bit": encode(MATTE > 128, "PNG"),
    "16 bits": encode(MATTE.astype(np.uint16) * 257, "PNG"),
    "a palette": paletted(MATTE),
}


def png(pixels: Pixels, kept: slice = slice(None), adler: bytes = b"") -> bytes:
    """A PNG with each kind of filter in turn; of its rows some, and perhaps with another inner checksum."""
    rows = [b"\0" + row.tobytes() for row in pixels]
    packed = zlib.compress(b"".join(rows)[kept])
    kind = {2: 0, 3: {3: 2, 4: 6}.get(pixels.shape[-1], 0)}[pixels.ndim]
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", packed[:-4] + (adler or packed[-4:])), (b"IEND", b""))
    parts = (
        struct.pack(">I4s", len(content), name) + content + crc(name, content)
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def crc(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(name + content))


def outcome(data: bytes, grey: bool, decoding: int) -> list[int] | str:
    try:
        return EncodedImage(data, "a", grey, decoding).decode().ravel().tolist()
    except UnreadableImage as error:
        return error.reason


def filtered(pixels: Pixels) -> Iterator[bytes]:
    order = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    for name in ("NONE", "SUB", "UP", "AVG", "PAETH"):
        flags = [cv2.IMWRITE_PNG_FILTER, getattr(cv2, f"IMWRITE_PNG_FILTER_{name}")]
        yield cv2.imencode(".png", np.ascontiguousarray(order), flags)[1].tobytes()
    yield encode(pixels, "PNG")


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("grey", [False, True])
def test_it_reads_plain_pictures_as_they_were_read_before(kind: str, grey: bool) -> None:
    for data in filtered(PLAIN[kind]):
        assert decode_png(read_header(data, grey, decoding=4)) is not None
        assert outcome(data, grey, decoding=4) == outcome(data, grey, decoding=3)


@pytest.mark.parametrize("kind", OTHERS)
def test_it_leaves_other_kinds_to_others(kind: str) -> None:
    data = OTHERS[kind]
    assert decode_png(read_header(data, True, decoding=4)) is None
    assert outcome(data, True, decoding=4) == outcome(data, True, decoding=3)


@pytest.mark.parametrize("grey", [False, True])
def test_damage_is_told_in_the_same_words(grey: bool) -> None:
    whole = png(MATTE)
    damaged = [whole[:cut] for cut in range(30, len(whole) - 20, 97)]
    damaged += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(8, 200, 7)]
    damaged += [png(MATTE, slice(cut)) for cut in (0, 97, 98, 5000)]
    reasons = [outcome(data, grey, decoding=4) for data in damaged]
    assert reasons == [outcome(data, grey, decoding=3) for data in damaged]
    assert sum(isinstance(reason, str) for reason in reasons) > len(damaged) // 2


def test_a_wrong_checksum_within_the_pixels_is_passed_over_but_not_in_runs_begun_before() -> None:
    data = png(MATTE, adler=b"1234")
    assert outcome(data, True, decoding=4) == MATTE.ravel().tolist()
    assert outcome(data, True, decoding=3) == "is truncated or corrupt"


def test_a_palette_picture_without_its_palette_is_refused() -> None:
    head = png(MATTE)[16:29]
    claimed = head[:9] + b"\3" + head[10:]
    data = png(MATTE).replace(head + crc(b"IHDR", head), claimed + crc(b"IHDR", claimed))
    assert "is not an image" in str(outcome(data, True, decoding=4))
