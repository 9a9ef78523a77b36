"""Pictures of other colour spaces are read as sRGB; those without a profile, or with sRGB's, as they are."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageCms

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
