"""Pictures that a camera stored turned are read upright, as every viewer shows them and every mask tool masks them."""

from __future__ import annotations

import dataclasses
import io
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from raymat.config.run import RunConfig
from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.dataset.run_dataset import grow_dataset, list_dataset, source_of
from raymat.data.dataset.source import FolderSource, SourceSpec
from raymat.data.decode import SCALES, EncodedImage, Pixels, shrink
from raymat.data.decoding.orientation import UPRIGHT, orientation_of
from raymat.errors import NewerFormatError
from raymat.storage.store import Store
from tests.support import runs
from tests.support.datakit import disc, encode, photo, write, write_dataset

TAGS = range(1, 9)
Turn = Image.Transpose
STORED_BY = {
    2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE,
    6: Turn.ROTATE_90, 7: Turn.TRANSVERSE, 8: Turn.ROTATE_270,
}  # fmt: skip
"""How a camera that is held as the tag says stores an upright scene."""
SIZES = [(96, 64), (64, 64), (93, 61)]
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 100, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
}


def taken(upright: Pixels, form: str, tag: int) -> bytes:
    """The file of a camera that was held as `tag` says; 0: without a tag."""
    exif = Image.Exif()
    exif[0x0112] = tag
    image = Image.fromarray(upright)
    stored = image.transpose(STORED_BY[tag]) if tag in STORED_BY else image
    more = {"exif": exif} if tag else {}
    return encode(np.asarray(stored), form, **OPTIONS[form], **more)


@pytest.mark.parametrize("form", list(OPTIONS))
@pytest.mark.parametrize("tag", TAGS)
def test_files_are_made_as_cameras_make_them(form: str, tag: int) -> None:
    with Image.open(io.BytesIO(taken(photo(1), form, tag))) as image:
        assert image.getexif()[0x0112] == tag
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.abs(shown.astype(int) - photo(1)).max() < 12


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", list(OPTIONS))
@pytest.mark.parametrize("tag", TAGS)
def test_pictures_are_upright_at_every_scale(form: str, tag: int, size: tuple[int, int]) -> None:
    upright, alpha = photo(1, *size), disc(1, *size)
    image = EncodedImage(taken(upright, form, tag), "a")
    matte = EncodedImage(taken(alpha, form, tag), "a", grey=True)
    assert image.size == matte.size == size
    for scale in SCALES:
        found, mask = image.decode(scale), matte.decode(scale)
        if form == "JPEG":
            # libjpeg shrinks in its own way; the picture that was never turned is the measure of it.
            plain = EncodedImage(taken(upright, form, 1), "a").decode(scale)
            assert np.abs(found.astype(int) - plain).mean() < 4
        else:
            assert np.abs(found.astype(int) - shrink(upright, scale)).max() <= 1
            assert np.abs(mask.astype(int) - shrink(alpha, scale)).max() <= 1
        assert overlap(mask, shrink(alpha, scale)) > 0.985


def overlap(one: Pixels, other: Pixels) -> float:
    """Intersection over union of two alphas."""
    first, second = one.astype(float), other.astype(float)
    return float(np.minimum(first, second).sum() / np.maximum(first, second).sum())


@pytest.mark.parametrize("tags", [(t, s) for t in TAGS for s in (0, 1, t)])
def test_a_photograph_and_its_mask_overlap_whichever_of_them_has_a_tag(
    tmp_path: Path, tags: tuple[int, int]
) -> None:
    scene = disc(3, 120, 80)
    for split in ("train", "valid"):
        write(f"{tmp_path}/data/{split}/fgr/a.jpg", taken(np.dstack([scene] * 3), "JPEG", tags[0]))
        write(f"{tmp_path}/data/{split}/pha/a.png", taken(scene, "PNG", tags[1]))
        write(f"{tmp_path}/walls/{split}/b.jpg", taken(photo(2), "JPEG", tags[0]))
    source = FolderSource(build_listing(f"{tmp_path}/data", f"{tmp_path}/walls"))
    fgr, pha = source.open_pair(0)
    assert source.open_background(0).size == (96, 64)
    for scale in SCALES:
        assert overlap(fgr.decode(scale)[..., 1], pha.decode(scale)) > 0.985


def test_a_tag_after_the_pixels_of_a_png_counts() -> None:
    whole = taken(photo(1), "PNG", 6)
    at = whole.index(b"eXIf") - 4
    (length,) = struct.unpack_from(">I", whole, at)
    chunk = whole[at : at + 12 + length]
    end = whole.index(b"IEND") - 4
    moved = whole[:at] + whole[at + 12 + length : end] + chunk + whole[end:]
    assert moved.index(b"IDAT") < moved.index(b"eXIf")
    assert orientation_of(moved) == orientation_of(whole) != UPRIGHT


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_are_read_and_other_values_are_upright(order: str) -> None:
    for value in range(12):
        tiff = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
            f"{order}IHHHIHHHHII",
            8,
            2,
            0x0100,
            3,
            1,
            7,
            0,
            0x0112,
            3,
            1,
            value << (0 if order == "<" else 16),
        )
        chunk = b"eXIf" + tiff
        png = encode(photo(1), "PNG")
        exif = struct.pack(">I", len(tiff)) + chunk + struct.pack(">I", zlib.crc32(chunk))
        found = orientation_of(png[:33] + exif + png[33:])
        assert (found == UPRIGHT) == (value not in range(2, 9)), value


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["H", "I"])
def test_the_tag_is_read_as_a_short_and_as_a_long_number(order: str, kind: str) -> None:
    """It should be a short one; some programs write a long one, and what Pillow's users mask is turned all the same."""
    code = {"H": 3, "I": 4}[kind]
    value = struct.pack(order + kind, 6).ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    exif = start + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, code, 1) + value + bytes(4)
    stored = np.asarray(Image.fromarray(photo(1)).transpose(STORED_BY[6]))
    data = encode(stored, "JPEG", exif=b"Exif\0\0" + exif)
    with Image.open(io.BytesIO(data)) as image:
        assert ImageOps.exif_transpose(image).size == (96, 64)
    assert EncodedImage(data, "a").size == (96, 64)
    assert EncodedImage(data, "a", decoding=5).size == ((96, 64) if kind == "H" else (64, 96))


XMP = b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>'


def with_xmp(stored: Pixels, form: str, tag: int, exif: Image.Exif | None = None) -> bytes:
    """A file in which XMP has the tag, and EXIF what is given."""
    more: dict[str, Any] = {"exif": exif} if exif else {}
    if form == "PNG":
        more["pnginfo"] = PngInfo()
        more["pnginfo"].add_itxt("XML:com.adobe.xmp", (XMP % tag).decode(), zip=tag % 2 == 0)
    elif form == "TIFF":
        more["tiffinfo"] = {700: XMP % tag}
    else:
        more["xmp"] = XMP % tag
    return encode(stored, form, **OPTIONS.get(form, {}), **more)


@pytest.mark.parametrize("form", [*OPTIONS, "TIFF", "AVIF"])
@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_in_xmp_alone_counts_whatever_the_format(form: str, tag: int) -> None:
    """Adobe's programs write it, and what Pillow's users mask is turned by it."""
    image = Image.fromarray(photo(1))
    stored = np.asarray(image.transpose(STORED_BY[tag]) if tag in STORED_BY else image)
    found = EncodedImage(with_xmp(stored, form, tag), "a")
    assert found.size == (96, 64)
    assert np.abs(found.decode().astype(int) - photo(1)).mean() < 4


def test_a_tag_in_exif_counts_more_and_runs_that_began_before_read_no_xmp() -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    for form in OPTIONS:
        assert EncodedImage(with_xmp(photo(1), form, 6, exif), "a").size == (96, 64)
        assert EncodedImage(with_xmp(photo(1), form, 6), "a").size == (64, 96)
        assert EncodedImage(with_xmp(photo(1), form, 6), "a", decoding=6).size == (96, 64)


@pytest.mark.parametrize("form", list(OPTIONS))
def test_damaged_tags_are_no_tags_and_nothing_else(form: str) -> None:
    data, draws = taken(photo(1), form, 6), random.Random(form)
    for cut in range(0, 200, 3):
        orientation_of(data[:cut])
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(4):
            broken[draws.randrange(min(200, len(broken)))] = draws.randrange(256)
        orientation_of(bytes(broken))
    assert orientation_of(b"") == orientation_of(b"\xff\xd8") == UPRIGHT


def config_of(root: Path) -> RunConfig:
    config = runs.tiny(root, "run")
    data = dataclasses.replace(
        config.data, synthetic=None, dataset=f"{root}/data", backgrounds=f"{root}/walls"
    )
    return dataclasses.replace(config, data=data)


def test_a_run_goes_on_reading_pictures_as_it_began(tmp_path: Path) -> None:
    write_dataset(str(tmp_path))
    config, store = config_of(tmp_path), Store.open(str(tmp_path), "run")
    turned = taken(photo(1), "JPEG", 6)
    write(f"{tmp_path}/walls/train/00.jpg", turned)
    now = list_dataset(config, store)
    assert now["decoding"] == 7
    before = {name: value for name, value in now.items() if name != "decoding"}  # as it was stored
    sizes = {
        version: source_of(config, store, listing).open().open_background(0).size
        for version, listing in ((1, before), (7, now))
    }
    assert sizes == {1: (64, 96), 7: (96, 64)}
    write(f"{tmp_path}/walls/train/9999.jpg", turned)
    assert grow_dataset(config, store, before).listing["decoding"] == 1
    assert grow_dataset(config, store, now).listing["decoding"] == 7
    with pytest.raises(NewerFormatError, match="read as of version 8, this raymat knows 7"):
        source_of(config, store, now | {"decoding": 8})


def test_a_run_that_began_before_still_refuses_a_turned_photograph_beside_its_upright_mask(
    tmp_path: Path,
) -> None:
    write_dataset(str(tmp_path), pairs=1)
    (path,) = (tmp_path / "data/train/fgr").rglob("*.jpg")
    path.write_bytes(taken(photo(0), "JPEG", 6))
    listing = build_listing(f"{tmp_path}/data", f"{tmp_path}/walls")
    (tmp_path / "listing.bin").write_bytes(listing.to_bytes())
    spec = SourceSpec.listed(f"{tmp_path}/listing.bin", listing.digest, decoding=1)
    with pytest.raises(UnreadableImage, match="is 64 x 96 pixels, but its alpha"):
        spec.open().open_pair(0)
    SourceSpec.listed(f"{tmp_path}/listing.bin", listing.digest).open().open_pair(0)
