"""Cut-outs: a transparent pixel's colour says nothing, and mixes into no edge; what may be a photograph stays."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.source import FolderSource
from raymat.data.decode import SCALES, EncodedImage, Pixels, shrink
from raymat.data.decoding import cut_out
from raymat.data.decoding.cut_out import REACH, continued
from tests.support.datakit import disc, encode, photo, write

MATTE = disc(5, 192, 128)
SUBJECT = np.full((*MATTE.shape, 3), (230, 120, 40), np.uint8)


def cut(hidden: int) -> Pixels:
    """A subject of one colour, cut out: RGBA whose transparent pixels are grey, black or white."""
    colours = np.where(MATTE[..., None] > 0, SUBJECT, np.uint8(hidden))
    return np.dstack([colours, MATTE])


def opened(data: bytes, **more: Any) -> EncodedImage:
    return EncodedImage(data, "fgr/a", cut_out=True, **more)


def deep(picture: Pixels) -> bytes:
    """A PNG of 16 bits a channel."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA).astype(np.uint16) * 257)[
        1
    ].tobytes()


@pytest.mark.parametrize("hidden", [0, 255])
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "AVIF", "deep"])
def test_no_edge_takes_the_colour_of_transparent_pixels(form: str, hidden: int) -> None:
    options = {
        "WEBP": {"lossless": True, "exact": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    data = (
        deep(cut(hidden)) if form == "deep" else encode(cut(hidden), form, **options.get(form, {}))
    )
    near = 12 if form == "AVIF" else 0
    for scale in SCALES:
        colours, alpha = opened(data).decode(scale), shrink(MATTE, scale)
        seen = alpha > 0
        assert np.abs(colours[seen].astype(int) - SUBJECT[0, 0]).max() <= near
    wrong = opened(data, decoding=6).decode(8)[shrink(MATTE, 8) > 0].astype(int) - SUBJECT[0, 0]
    assert np.abs(wrong).max() > 20


def test_what_is_visible_stays_as_it_is_to_the_bit() -> None:
    picture = np.dstack([np.where(MATTE[..., None] > 0, photo(3, 192, 128), np.uint8(0)), MATTE])
    found = opened(encode(picture, "PNG")).decode()
    assert np.array_equal(found[MATTE > 0], picture[MATTE > 0][:, :3])


def test_a_photograph_under_its_mask_stays_and_so_do_backgrounds() -> None:
    masked = np.dstack([photo(3, 192, 128), MATTE])
    assert np.array_equal(opened(encode(masked, "PNG")).decode(), masked[..., :3])
    assert np.array_equal(EncodedImage(encode(cut(0), "PNG"), "a").decode(), cut(0)[..., :3])


@pytest.mark.parametrize("pixels", [1, 9 * 512, 2**22])
def test_colours_are_continued_as_far_as_an_edge_can_reach_whatever_the_strips(
    pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut_out, "_PIXELS", pixels)
    alpha = np.zeros((1400, 9), np.uint8)
    alpha[[500, 1300]] = 255
    alpha[501] = 3  # too faint to be believed
    colours = np.where(alpha[..., None] > 25, np.uint8([10, 200, 90]), np.uint8(0)).astype(np.uint8)
    found = continued(colours, alpha)
    rows = np.flatnonzero((found == (10, 200, 90)).all(axis=(1, 2)))
    expected = {*range(500 - REACH, 501 + REACH), *range(1300 - REACH, 1301 + REACH)} - {501}
    assert {*rows.tolist()} == expected
    assert not found[501].any()


def test_a_picture_that_is_transparent_or_opaque_everywhere_stays() -> None:
    for alpha in (np.zeros_like(MATTE), np.full_like(MATTE, 255), np.minimum(MATTE, 9)):
        assert np.array_equal(continued(SUBJECT, alpha), SUBJECT)


def test_a_pair_of_one_rgba_file_composes_as_it_was_cut_out(tmp_path: Any) -> None:
    for split in ("train", "valid"):
        for half in ("fgr", "pha"):
            write(f"{tmp_path}/data/{split}/{half}/a.png", encode(cut(0), "PNG"))
        write(f"{tmp_path}/walls/{split}/w.jpg", encode(photo(1), "JPEG"))
    source = FolderSource(build_listing(f"{tmp_path}/data", f"{tmp_path}/walls"))
    fgr, pha = (image.decode(4).astype(float) for image in source.open_pair(0))
    with Image.open(
        io.BytesIO(encode(cut(0), "PNG"))
    ) as image:  # averaged premultiplied, as is right
        premultiplied = np.asarray(image.convert("RGBa"))[..., :3]
    assert np.abs(fgr * pha[..., None] / 255 - shrink(premultiplied, 4)).max() <= 2
