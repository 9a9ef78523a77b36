"""Pictures of other colour spaces are read as sRGB; those without a profile, or with sRGB's, as they are."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.decode import SCALES, EncodedImage, Pixels, shrink
from raymat.data.decoding.colour_profile import profile_of
from tests.support.datakit import disc, encode, photo

# Primaries as they stand in profiles, adapted to D50: rows X, Y, Z, columns red, green, blue.
SRGB = np.array(
    [[0.43604, 0.38512, 0.14305], [0.22249, 0.71690, 0.06061], [0.01392, 0.09706, 0.71393]]
)
DISPLAY_P3 = np.array(
    [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
)


def linear(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    bent = 1.055 * np.maximum(values, 0) ** (1 / 2.4) - 0.055
    return np.where(values <= 0.0031308, values * 12.92, bent)


def profile(primaries: NDArray[np.float64]) -> bytes:
    """An ICC profile (version 2) of a display with sRGB's curve and these primaries."""

    def point(values: Any) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = np.round(linear(np.linspace(0, 1, 1024)) * 65535).astype(">u2").tobytes()
    text = b"made for a test\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0" + text,
        b"wtpt": point((0.9642, 1.0, 0.8249)),
        **{name + b"XYZ": point(primaries[:, i]) for i, name in enumerate((b"r", b"g", b"b"))},
        **{
            name + b"TRC": b"curv\0\0\0\0" + struct.pack(">I", 1024) + curve
            for name in (b"r", b"g", b"b")
        },
    }
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(
        ">I4sI4s4s4s", at + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += b"".join(struct.pack(">i", round(v * 65536)) for v in (0.9642, 1.0, 0.8249))
    return head + bytes(128 - len(head)) + table + body


P3 = profile(DISPLAY_P3)


def as_srgb(pixels: Pixels) -> Pixels:
    """What Display P3 pixels are in sRGB, by the definitions of both."""
    light = linear(pixels / 255) @ (np.linalg.inv(SRGB) @ DISPLAY_P3).T
    return np.round(np.clip(encoded(light), 0, 1) * 255).astype(np.uint8)


def difference(one: Pixels, other: Pixels) -> NDArray[np.int64]:
    return np.abs(one.astype(int) - other)


OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
}


@pytest.mark.parametrize("form", list(OPTIONS))
def test_colours_of_display_p3_become_those_of_srgb_at_every_scale(form: str) -> None:
    data = encode(photo(1), form, icc_profile=P3, **OPTIONS[form])
    plain = encode(photo(1), form, **OPTIONS[form])
    assert difference(photo(1), as_srgb(photo(1))).mean() > 3  # what it was wrong by
    for scale in SCALES:
        found = EncodedImage(data, "a").decode(scale)
        expected = as_srgb(EncodedImage(plain, "a").decode(scale))
        assert difference(found, expected).max() <= 2
    assert difference(EncodedImage(data, "a").decode(), as_srgb(photo(1))).mean() < 0.7


@pytest.mark.parametrize("form", list(OPTIONS))
def test_srgb_no_profile_and_damaged_ones_change_no_colour(form: str) -> None:
    plain = encode(photo(1), form, **OPTIONS[form])
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    expected = EncodedImage(plain, "a").decode()
    for given in (srgb, profile(SRGB), P3[:200], bytes(400), b"x"):
        data = encode(photo(1), form, icc_profile=given, **OPTIONS[form])
        assert np.array_equal(EncodedImage(data, "a").decode(), expected)
    assert profile_of(plain) == b""


@pytest.mark.parametrize("form", list(OPTIONS))
def test_a_profile_is_found_whole_however_large_and_damage_to_it_is_no_error(form: str) -> None:
    large = P3[:-4] + random.Random(1).randbytes(200_000)  # a JPEG has it in four parts
    data = encode(photo(1), form, icc_profile=large, **OPTIONS[form])
    assert profile_of(data) == large
    draws = random.Random(form)
    for _ in range(200):
        broken = bytearray(encode(photo(1), form, icc_profile=P3, **OPTIONS[form]))
        for _ in range(4):
            broken[draws.randrange(min(300, len(broken)))] = draws.randrange(256)
        profile_of(bytes(broken))


def test_mattes_have_no_colours_and_a_run_that_began_before_reads_as_it_began() -> None:
    matte = encode(np.repeat(disc(1)[..., None], 3, axis=2), "PNG", icc_profile=P3)
    assert np.array_equal(EncodedImage(matte, "a", grey=True).decode(), disc(1))
    data = encode(photo(1), "PNG", icc_profile=P3)
    for scale in SCALES:
        found = EncodedImage(data, "a", decoding=1).decode(scale)
        assert np.array_equal(found, shrink(photo(1), scale))


def test_a_small_file_does_not_inflate_to_a_large_profile() -> None:
    data = encode(photo(1), "PNG", icc_profile=bytes(50_000_000))
    assert len(data) < 200_000
    assert len(profile_of(data)) == 4 * 2**20


def with_chunks(png: bytes, **chunks: bytes) -> bytes:
    """A PNG with more chunks before its pixels."""
    made = [
        struct.pack(">I", len(content)) + (name.encode() + content)
        + struct.pack(">I", zlib.crc32(name.encode() + content))
        for name, content in chunks.items()
    ]  # fmt: skip
    return png[:33] + b"".join(made) + png[33:]


GAMMA = struct.pack(">I", 45455)
LINEAR = struct.pack(">I", 100_000)
P3_POINTS = struct.pack(">8I", *(31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
SRGB_POINTS = struct.pack(">8I", *(31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))


@pytest.mark.parametrize(
    "chunks",
    [
        {"cICP": bytes([12, 13, 0, 1])},
        {"cHRM": P3_POINTS},
        {"gAMA": GAMMA, "cHRM": P3_POINTS},
        {"sRGB": b"\0", "cICP": bytes([12, 13, 0, 1])},
    ],
)
def test_colour_spaces_that_a_png_states_in_numbers_count(chunks: dict[str, bytes]) -> None:
    data = with_chunks(encode(photo(1), "PNG"), **chunks)
    for scale in SCALES:
        found = EncodedImage(data, "a").decode(scale)
        expected = as_srgb(EncodedImage(encode(photo(1), "PNG"), "a").decode(scale))
        assert difference(found, expected).max() <= 2
    assert np.array_equal(EncodedImage(data, "a", decoding=4).decode(), photo(1))


@pytest.mark.parametrize(
    "chunks",
    [
        {"gAMA": GAMMA, "cHRM": SRGB_POINTS},
        {"sRGB": b"\0", "gAMA": LINEAR, "cHRM": P3_POINTS},
        {"cICP": bytes([1, 13, 0, 1])},
        {"cICP": b"\1"},
        {"gAMA": bytes(4), "cHRM": bytes(32)},
        {"gAMA": b"\1", "cHRM": b"\1"},
        {"gAMA": struct.pack(">I", 1)},
    ],
)
def test_srgb_in_numbers_and_numbers_of_no_screen_change_nothing(chunks: dict[str, bytes]) -> None:
    data = with_chunks(encode(photo(1), "PNG"), **chunks)
    assert np.array_equal(EncodedImage(data, "a").decode(), photo(1))


def test_linear_light_is_bent_and_a_matte_is_left_as_it_is() -> None:
    data = with_chunks(encode(photo(1), "PNG"), gAMA=LINEAR)
    expected = np.round(np.clip(encoded(photo(1) / 255), 0, 1) * 255)
    assert difference(EncodedImage(data, "a").decode(), expected.astype(np.uint8)).max() <= 2
    matte = with_chunks(encode(disc(1), "PNG"), gAMA=LINEAR)
    assert np.array_equal(EncodedImage(matte, "a", grey=True).decode(), disc(1))


def test_an_avif_of_display_p3_becomes_srgb_and_high_dynamic_range_is_refused_by_name() -> None:
    plain = encode(photo(1), "AVIF", quality=100, subsampling="4:4:4")
    at = plain.index(b"nclx") + 4

    def stating(primaries: int, transfer: int) -> EncodedImage:
        return EncodedImage(
            plain[:at] + struct.pack(">HH", primaries, transfer) + plain[at + 4 :], "a.avif"
        )

    shown = EncodedImage(plain, "a.avif").decode()
    assert difference(stating(12, 13).decode(), as_srgb(shown)).max() <= 2
    assert np.array_equal(stating(1, 1).decode(), shown)
    for transfer, name in ((16, "PQ"), (18, "HLG")):
        with pytest.raises(UnreadableImage, match=rf"high dynamic range \({name}\)"):
            stating(9, transfer)
    with pytest.raises(UnreadableImage, match="high dynamic range"):
        EncodedImage(with_chunks(encode(photo(1), "PNG"), cICP=bytes([9, 16, 0, 1])), "a.png")


def profile_of_one(space: bytes, curve: bytes, target: bytes = b"XYZ ") -> bytes:
    """An ICC profile of greys or inks, with the one table that says what they are."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    name, kind = (b"kTRC", b"mntr") if space == b"GRAY" else (b"A2B0", b"prtr")
    at = 128 + 4 + 24
    table = struct.pack(">I", 2) + b"wtpt" + struct.pack(">II", at, 20)
    table += name + struct.pack(">II", at + 20, len(curve))
    head = struct.pack(">I4xI", at + 20 + len(curve), 0x02400000) + kind + space + target
    head += bytes(12) + b"acsp" + bytes(28) + white[8:]
    return head.ljust(128, b"\0") + table + white + curve


@pytest.mark.parametrize("form", list(OPTIONS))
def test_greys_of_another_curve_become_those_of_srgb(form: str) -> None:
    other = profile_of_one(b"GRAY", b"curv\0\0\0\0" + struct.pack(">IH", 1, 0x01CD) + b"\0\0")
    grey = photo(1)[..., 1]
    picture = np.repeat(grey[..., None], 3, axis=2) if form == "WEBP" else grey
    plain = EncodedImage(encode(picture, form, **OPTIONS[form]), "a").decode()
    data = encode(picture, form, icc_profile=other, **OPTIONS[form])
    light = (plain / 255) ** (0x01CD / 256)  # a gamma of 1.8, as old Macs had
    expected = np.round(np.clip(encoded(light), 0, 1) * 255).astype(np.uint8)
    assert difference(expected, plain).max() > 8
    assert difference(EncodedImage(data, "a").decode(), expected).max() <= 2
    assert np.array_equal(EncodedImage(data, "a", decoding=4).decode(), plain)
    coloured = encode(photo(1), form, icc_profile=other, **OPTIONS[form])
    assert np.array_equal(
        EncodedImage(coloured, "a").decode(),
        EncodedImage(encode(photo(1), form, **OPTIONS[form]), "a").decode(),
    )


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_inks_become_the_colours_that_their_profile_says(form: str) -> None:
    # Two points for each ink: paper has lightness 100; black ink 20, alone and on the others; the others 60 together.
    corners = [
        255 if not inks else 51 if inks & 1 else 153 for inks in range(16)
    ]  # cyan is the highest bit, black the lowest
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0])
    lut += b"".join(struct.pack(">i", 65536 * (i % 4 == 0)) for i in range(9))
    lut += bytes(range(256)) * 4 + bytes(v for c in corners for v in (c, 128, 128))
    lut += bytes(range(256)) * 3
    inks = np.zeros((32, 32, 4), np.uint8)
    inks[16:, :, 3] = 255
    buffer, given = io.BytesIO(), profile_of_one(b"CMYK", lut, b"Lab ")
    picture = Image.frombytes("CMYK", (32, 32), inks.tobytes())
    picture.save(buffer, form, icc_profile=given, **OPTIONS.get(form, {}))
    data = buffer.getvalue()
    found = EncodedImage(data, "a").decode()
    assert difference(found[:14], np.full((14, 32, 3), 255, np.uint8)).max() <= 2
    # Lightness 20 of 100 is 48 in sRGB: luminance ((20 + 16) / 116)^3 = 0.030.
    assert difference(found[18:], np.full((14, 32, 3), 48, np.uint8)).max() <= 3
    assert EncodedImage(data, "a", decoding=4).decode()[18:].max() == 0
