"""Every format that is read is read exactly, told by its content; others are refused by name, and nothing is printed."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.decode import SCALES, EncodedImage, Pixels, shrink
from raymat.data.decoding.header import MEMORY
from tests.support.datakit import disc, encode, photo

PHOTO, MATTE = photo(1), disc(1)
RGBA = np.dstack([PHOTO, MATTE])
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")


def read(data: bytes, grey: bool = False, decoding: int = 4) -> Pixels:
    return EncodedImage(data, "a.png", grey, decoding).decode()


def refusal(data: bytes, grey: bool = False, decoding: int = 4) -> str:
    with pytest.raises(UnreadableImage) as refused:
        read(data, grey, decoding)
    assert refused.value.path == "a.png"
    return refused.value.reason


def tiff(pixels: Any) -> bytes:
    """As OpenCV writes it: unlike Pillow it has 16 bits for each colour."""
    order = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]] if pixels.ndim == 3 else pixels
    return bytes(cv2.imencode(".tiff", np.ascontiguousarray(order))[1].tobytes())


# What Pillow reads.

FORMS: dict[str, tuple[bytes, bytes]] = {
    "tiff": (encode(PHOTO, "TIFF"), encode(MATTE, "TIFF")),
    "tiff, lzw": (
        encode(PHOTO, "TIFF", compression="tiff_lzw"),
        encode(MATTE, "TIFF", compression="tiff_lzw"),
    ),
    "tiff, deflate": (
        encode(PHOTO, "TIFF", compression="tiff_adobe_deflate"),
        encode(MATTE, "TIFF", compression="tiff_adobe_deflate"),
    ),
    "tiff, 16 bits": (tiff(PHOTO.astype(np.uint16) * 257), tiff(MATTE.astype(np.uint16) * 257)),
    "tiff with alpha": (encode(RGBA, "TIFF"), encode(RGBA, "TIFF")),
    "bmp": (encode(PHOTO, "BMP"), encode(MATTE, "BMP")),
    "avif": (
        encode(PHOTO, "AVIF", quality=100, subsampling="4:4:4"),
        encode(RGBA, "AVIF", quality=100, subsampling="4:4:4"),
    ),
    "gif": (encode(np.repeat(MATTE[..., None], 3, axis=2), "GIF"), encode(MATTE, "GIF")),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_pillow_reads_is_read_whatever_its_name(form: str) -> None:
    picture, matte = FORMS[form]
    truth = np.repeat(MATTE[..., None], 3, axis=2) if form == "gif" else PHOTO
    close = 3 if form == "avif" else 0
    assert np.abs(read(picture).astype(int) - truth).max() <= close
    assert np.abs(read(matte, grey=True).astype(int) - MATTE).max() <= close
    for scale in SCALES:
        found = EncodedImage(matte, "a", grey=True).decode(scale)
        assert np.array_equal(found, shrink(read(matte, grey=True), scale))
    assert refusal(picture, decoding=2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", [0.2, 0.5, 0.95])
def test_what_is_cut_off_is_refused(form: str, part: float) -> None:
    for data, grey in zip(FORMS[form], (False, True), strict=True):
        assert refusal(data[: int(part * len(data))], grey)


def test_grey_tiffs_of_16_bits_and_of_fractions_are_colours_and_mattes() -> None:
    sixteen = tiff(MATTE.astype(np.uint16) * 257)
    twelve = tiff((MATTE.astype(int) * 4095 // 255).astype(np.uint16))
    fractions = tiff(MATTE.astype(np.float32) / 255)
    assert np.array_equal(read(sixteen), np.repeat(MATTE[..., None], 3, axis=2))
    assert np.array_equal(read(fractions), np.repeat(MATTE[..., None], 3, axis=2))
    assert np.array_equal(read(fractions, grey=True), MATTE)
    assert np.abs(read(twelve, grey=True).astype(int) - MATTE).max() <= 1
    beyond = tiff(MATTE.astype(np.float32))
    assert refusal(beyond, True) == "has floating-point numbers beyond 0 to 1"


@pytest.mark.parametrize("form", ["TIFF", "AVIF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_they_are_read_upright(form: str, tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    options = {"quality": 100, "subsampling": "4:4:4"} if form == "AVIF" else {}
    data = encode(PHOTO, form, exif=exif, **options)
    turns = {
        1: PHOTO, 2: PHOTO[:, ::-1], 3: PHOTO[::-1, ::-1], 4: PHOTO[::-1],
        5: PHOTO.swapaxes(0, 1), 6: PHOTO.swapaxes(0, 1)[:, ::-1],
        7: PHOTO.swapaxes(0, 1)[::-1, ::-1], 8: PHOTO.swapaxes(0, 1)[::-1],
    }  # fmt: skip
    upright = turns[tag]
    assert EncodedImage(data, "a").size == (upright.shape[1], upright.shape[0])
    assert np.abs(read(data).astype(int) - upright).max() <= 3


# JPEGs of every kind.

JPEG = encode(PHOTO, "JPEG")


def sampled(*factors: tuple[int, int]) -> bytes:
    """A JPEG of 6 x 4 units of blocks with any sampling factors: the blocks of a grey one, dealt to three components."""
    blocks = 24 * sum(h * v for h, v in factors)
    strip = np.asarray(cv2.resize(photo(5, 480, 8)[..., 0], (8 * blocks, 8)))
    grey = encode(strip // 4 + 96, "JPEG", quality=95)
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    size = (4 * 8 * max(v for _, v in factors), 6 * 8 * max(h for h, _ in factors))
    head = struct.pack(">BHHB", 8, *size, 3)
    head += b"".join(bytes([i + 1, h << 4 | v, 0]) for i, (h, v) in enumerate(factors))
    begin = bytes([3, 1, 0, 2, 0, 3, 0, 0, 63, 0])
    after = grey[frame + 2 + int.from_bytes(grey[frame + 2 : frame + 4], "big") : scan]
    content = grey[scan + 2 + int.from_bytes(grey[scan + 2 : scan + 4], "big") :]
    return b"".join(
        [
            grey[:frame], b"\xff\xc0", struct.pack(">H", len(head) + 2), head,
            after, b"\xff\xda", struct.pack(">H", len(begin) + 2), begin, content,
        ]
    )  # fmt: skip


ODD: dict[str, bytes] = {
    "1x4": sampled((1, 4), (1, 1), (1, 1)),
    "4x1": sampled((4, 1), (1, 1), (1, 1)),
    "2x4": sampled((2, 4), (1, 1), (1, 1)),
    "4x2": sampled((4, 2), (1, 1), (1, 1)),
    "2x2": sampled((2, 2), (1, 1), (1, 1)),
    "1x2": sampled((1, 2), (1, 1), (1, 1)),
    "chroma above luma": sampled((1, 1), (2, 1), (1, 1)),
    "chroma 2x1 and 1x2": sampled((2, 1), (2, 1), (1, 2)),
    "progressive": encode(PHOTO, "JPEG", progressive=True),
    "restarts": encode(PHOTO, "JPEG", restart_marker_rows=1),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_jpeg_of_any_sampling_is_what_an_independent_decoder_shows(kind: str) -> None:
    data = ODD[kind]
    truth = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(read(data).astype(int) - truth).mean() <= 1.5
    assert np.array_equal(read(data[:-2]), read(data)), "without its end marker too"
    for scale in SCALES:
        height, width = (-(-side // scale) for side in truth.shape[:2])
        assert EncodedImage(data, "a").decode(scale).shape == (height, width, 3)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("tail", [b"", b"\xff\xd9"])
def test_a_truncated_jpeg_of_any_sampling_is_refused(kind: str, tail: bytes) -> None:
    data = ODD[kind]
    for cut in (30, 300, len(data) // 3):
        assert refusal(data[:-cut] + tail)


@pytest.mark.parametrize("padding", [bytes(40), bytes(4096), b" " * 40])
@pytest.mark.parametrize("end", [b"\xff\xd9", b""])
def test_a_jpeg_that_is_filled_up_is_whole_and_a_truncated_one_is_not(
    padding: bytes, end: bytes
) -> None:
    for whole, grey in ((JPEG, False), (encode(MATTE, "JPEG"), True)):
        found = read(whole[:-2] + padding + end, grey)
        assert np.array_equal(found, read(whole, grey))
        assert refusal(whole[:-2] + padding + end, grey, decoding=2)
        for cut in (30, 300, len(whole) // 3):
            assert refusal(whole[:-cut] + padding + end, grey)
    assert refusal(JPEG[:-2] + bytes(range(1, 60)) + end)


def test_jpegs_of_inks_are_read_whole_or_not_at_all() -> None:
    inks = Image.fromarray(PHOTO).convert("CMYK")
    inks.save(buffer := io.BytesIO(), "JPEG", quality=95, subsampling=0)
    data = buffer.getvalue()
    assert np.abs(read(data).astype(int) - PHOTO).mean() <= 1.5
    for tail in (b"", b"\xff\xd9"):
        assert refusal(data[: len(data) // 2] + tail)


def test_jpegs_of_other_depths_are_refused_by_name() -> None:
    at = JPEG.index(b"\xff\xc0")
    deep = JPEG[: at + 4] + b"\x0c" + JPEG[at + 5 :]
    assert refusal(deep) == (
        "has 12 bits a sample, and only ordinary JPEGs of 8 bits are read: convert it"
    )
    lossless = JPEG[: at + 1] + b"\xc3" + JPEG[at + 2 :]
    assert "is lossless" in refusal(lossless)


def test_a_colour_jpeg_is_no_matte_at_any_scale() -> None:
    data = encode(photo(2, 320, 240), "JPEG", quality=90)
    for scale in SCALES:
        with pytest.raises(UnreadableImage, match="is a colour picture, not a matte"):
            EncodedImage(data, "a", grey=True).decode(scale)
    assert read(data, grey=True, decoding=2).shape == (240, 320)
    inks = Image.fromarray(photo(2)).convert("CMYK")
    buffer = io.BytesIO()
    inks.save(buffer, "JPEG")
    assert refusal(buffer.getvalue(), True, decoding=6) == "is a colour picture, not a matte"
    assert read(buffer.getvalue(), True, decoding=5).shape == (64, 96)
    grey = encode(np.repeat(MATTE[..., None], 3, axis=2), "JPEG", quality=75)
    assert np.array_equal(read(grey, grey=True), read(grey, grey=True, decoding=2))


# What is not read.


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0", "is a HEIC picture, not an image that is read (JPEG, PNG,"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "is a video (MP4 or MOV), not"),
        (b"v/1\x01\2\0\0\0", "is an OpenEXR picture, not"),
        (b"8BPS\0\1", "is a Photoshop document, not"),
        (b"<!DOCTYPE html>", "is HTML, XML or SVG, not"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        (b"", "is empty"),
        (b"II*\0\x10\0\0\0CR", "is a TIFF that is not read: truncated, a camera's raw picture, or"),
        (b"\xef\xbb\xbf\n<svg>", "is HTML, XML or SVG, not"),
        (b"gimp xcf v011", "is a GIMP document, not"),
        (b"\0\5\x16\7\0\2", "is what a Mac leaves beside a file (AppleDouble), not"),
        (b"what is this", "is not an image (JPEG, PNG, WebP, TIFF, BMP, GIF and AVIF)"),
    ],
)
def test_other_files_are_refused_by_what_they_are(start: bytes, words: str) -> None:
    assert refusal(start + bytes(100) if start else b"").startswith(words)


# PNGs with damaged extras, and what decoders print.


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def with_chunk(data: bytes, extra: bytes) -> bytes:
    return data[:33] + extra + data[33:]


PNG = encode(PHOTO, "PNG")
LARGE = encode(photo(3, 600, 400), "PNG")
AT = LARGE.index(b"IDAT")
EXTRAS = {
    "profile that is none": chunk(b"iCCP", b"a\0\0" + zlib.compress(b"x" * 400)),
    "profile that inflates to much": chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**23))),
    "text with a wrong checksum": b"\0\0\0\4tEXtab\0c\0\0\0\0",
    "gamma of 0": chunk(b"gAMA", bytes(4)),
    "transparency of a wrong length": chunk(b"tRNS", b"abc"),
    "palette of a wrong length": chunk(b"PLTE", b"abcd"),
    "exif that is none": chunk(b"eXIf", b"zz"),
}
CORRUPT = {
    "flipped bits": LARGE[: AT + 3000] + bytes([LARGE[AT + 3000] ^ 255]) + LARGE[AT + 3001 :],
    "wrong checksum": LARGE[:-20] + b"\1\2\3\4" + LARGE[-16:],
    "half": LARGE[: len(LARGE) // 2],
    "no pixels": PNG[:33] + chunk(b"IDAT", b"abcdef") + PNG[-12:],
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_damaged_extras_of_a_png_hide_no_whole_picture(extra: str) -> None:
    assert np.array_equal(read(with_chunk(PNG, EXTRAS[extra])), PHOTO)
    matte = encode(np.dstack([MATTE, MATTE, MATTE]), "PNG")
    assert np.array_equal(read(with_chunk(matte, EXTRAS[extra]), grey=True), MATTE)


@pytest.mark.parametrize("damage", CORRUPT)
def test_damaged_pixels_of_a_png_are_refused_in_words_of_our_own(damage: str) -> None:
    assert refusal(CORRUPT[damage]).startswith("is truncated")


DECODE_ALL = """
import pickle, sys
from raymat.data.decode import EncodedImage, UnreadableImage, use_one_thread
use_one_thread()
for data in pickle.load(sys.stdin.buffer):
    for grey in (False, True):
        try:
            EncodedImage(data, "a", grey).decode()
        except UnreadableImage:
            pass
"""


def test_no_decoder_prints_anything() -> None:
    grey = encode(photo(3, 600, 400)[..., 0], "PNG")
    files = [with_chunk(PNG, extra) for extra in EXTRAS.values()] + [*CORRUPT.values(), grey[:9000]]
    for form in ("TIFF", "BMP", "GIF", "AVIF", "JPEG", "WEBP"):
        whole = encode(photo(3, 600, 400), form)
        half = len(whole) // 2
        files += [whole[:half], whole[:half] + bytes(60) + whole[half + 60 :]]
    files += [FORMS["tiff, lzw"][0][:3000], *(data[:-300] + b"\xff\xd9" for data in ODD.values())]
    done = subprocess.run(
        [sys.executable, "-c", DECODE_ALL], input=pickle.dumps(files), capture_output=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# Memory.

PEAK = """
import sys
from raymat.data.decode import EncodedImage, UnreadableImage
from tests.support.datakit import encode, photo
def peak():
    status = open("/proc/self/status").read().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024
EncodedImage(encode(photo(1), "PNG"), "a").decode()
before, data = peak(), open(sys.argv[1], "rb").read()
try:
    EncodedImage(data, "a", grey=sys.argv[2] == "grey").decode()
except UnreadableImage as error:
    print(error.reason, file=sys.stderr)
print(peak() - before - len(data))
"""


def blank_png(width: int, height: int, extra: bytes = b"") -> bytes:
    deflate, rows = zlib.compressobj(9), bytes(64 * (1 + 3 * width))
    content = b"".join(deflate.compress(rows) for _ in range(height // 64)) + deflate.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join([PNG[:8], head, extra, chunk(b"IDAT", content), chunk(b"IEND", b"")])


def deflated(mebibytes: int) -> bytes:
    """Return so many mebibytes of zeros as a zlib stream, of one piece repeated: to compress 4 GiB takes half a minute."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = deflate.compress(bytes(2**20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    checksum = (mebibytes * 2**20 % 65521) << 16 | 1  # Adler-32 of zeros
    return b"x\xda" + piece * mebibytes + end + struct.pack(">I", checksum)


def bomb(kind: str) -> bytes:
    if kind == "png":
        return blank_png(13_056, 13_056)
    if kind == "png with a text of 4 GiB":
        return blank_png(64, 64, chunk(b"zTXt", b"a\0\0" + deflated(4096)))
    if kind == "png that claims more than it holds":
        return blank_png(64, 64).replace(
            struct.pack(">II", 64, 64), struct.pack(">II", 16_000, 16_000)
        )
    if kind == "jpeg":
        small = encode(photo(1, 400, 400), "JPEG")[:11_000]
        return small.replace(struct.pack(">HH", 400, 400), struct.pack(">HH", 16_000, 16_000))
    form, side = {"tiff": ("TIFF", 16_000), "webp": ("WEBP", 16_383), "gif": ("GIF", 16_000)}[kind]
    options = {
        "TIFF": {"compression": "tiff_adobe_deflate"},
        "WEBP": {"lossless": True, "method": 0},
        "GIF": {},
    }
    Image.new("RGB" if form != "GIF" else "P", (side, side)).save(
        buffer := io.BytesIO(), form, **options[form]
    )
    return buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("png", MEMORY),
        ("png with a text of 4 GiB", 2**26),
        ("png that claims more than it holds", 2**24),
        ("jpeg", 2**24),
        ("tiff", 2**24),
        ("webp", MEMORY),
        ("gif", 2**24),
    ],
)
@pytest.mark.parametrize("colours", ["rgb", "grey"])
def test_a_small_file_costs_no_more_memory_than_stated(
    tmp_path: Path, kind: str, most: int, colours: str
) -> None:
    (tmp_path / "file").write_bytes(bomb(kind))
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "file"), colours],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert int(done.stdout) <= most, done.stderr


# Several pictures in a file.


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_pictures_of_an_animation_and_of_pages_are_counted(form: str) -> None:
    frames = [Image.fromarray(photo(i)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:])
    assert EncodedImage(file.getvalue(), "a").frames == 3
    assert EncodedImage(encode(PHOTO, form), "a").frames == 1
    assert EncodedImage(encode(PHOTO, "JPEG"), "a").frames == 1


def test_the_small_copy_of_a_page_that_a_tiff_holds_is_no_picture_of_its_own() -> None:
    small = Image.fromarray(photo(1, 48, 32))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "TIFF", save_all=True, append_images=[small])
    with Image.open(file) as image:
        assert image.n_frames == 2
    assert EncodedImage(file.getvalue(), "a").frames == 1
