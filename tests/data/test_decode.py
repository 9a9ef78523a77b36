"""Whatever a file is, its pixels come out right, at the scale asked for, or its fault is named."""

from __future__ import annotations

import io
import pickle

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.decode import SCALES, EncodedImage, RawImage, Scale, shrink, use_one_thread
from tests.support.datakit import Pixels, disc, encode, photo


def decode(data: bytes, grey: bool = False, scale: Scale = 1) -> Pixels:
    return EncodedImage(data, "a.jpg", grey).decode(scale)


def reference(data: bytes, mode: str = "RGB") -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


def difference(a: Pixels, b: Pixels) -> int:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(int) - b.astype(int)).max())


RGBA = np.dstack([photo(3), disc(3)])
GREY = disc(4)
GREY_AS_RGB = np.repeat(GREY[..., None], 3, axis=2)

LOSSLESS = {
    "rgb": (encode(photo(1), "PNG"), photo(1)),
    "grey": (encode(GREY, "PNG"), GREY_AS_RGB),
    "grey stored as rgb": (encode(GREY_AS_RGB, "PNG"), GREY_AS_RGB),
    "rgb with alpha": (encode(RGBA, "PNG"), RGBA[..., :3]),
    "grey with alpha": (encode(RGBA[..., 2:].copy(), "PNG"), np.repeat(RGBA[..., 2:3], 3, axis=2)),
    "16 bits": (cv2.imencode(".png", GREY.astype(np.uint16) * 257)[1].tobytes(), GREY_AS_RGB),
    "16 bits rgb": (
        cv2.imencode(".png", photo(1)[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
        photo(1),
    ),
    "webp": (encode(photo(1), "WEBP", lossless=True), photo(1)),
    "webp with alpha": (encode(RGBA, "WEBP", lossless=True, exact=True), RGBA[..., :3]),
}


@pytest.mark.parametrize("case", LOSSLESS)
def test_lossless_files_give_their_colours(case: str) -> None:
    data, truth = LOSSLESS[case]
    assert difference(decode(data), truth) == 0


@pytest.mark.parametrize("case", ["grey", "grey stored as rgb", "16 bits"])
def test_lossless_alphas_give_their_greys(case: str) -> None:
    assert difference(decode(LOSSLESS[case][0], grey=True), GREY) == 0


@pytest.mark.parametrize("mode", ["P", "1"])
def test_palettes_and_bitmaps_become_colours_and_greys(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo(1)).convert(mode).save(buffer, "PNG")
    data = buffer.getvalue()
    assert difference(decode(data), reference(data)) == 0
    found = EncodedImage(data, "a.jpg", grey=True, decoding=1).decode()
    assert difference(found, reference(data, "L")) <= 1


@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"progressive": True}, {"keep_rgb": True}, {"quality": 30}],
    ids=str,
)
def test_jpegs_come_out_as_pillow_decodes_them(options: dict[str, int]) -> None:
    data = encode(photo(2), "JPEG", **options)
    assert difference(decode(data), reference(data)) == 0
    found = EncodedImage(data, "a.jpg", grey=True, decoding=2).decode()
    assert difference(found, reference(data, "L")) <= 6  # of saturated colours


def test_grey_jpegs_come_out_in_either_form() -> None:
    plain = encode(GREY, "JPEG", quality=95)
    assert difference(decode(plain, grey=True), reference(plain, "L")) == 0
    assert difference(decode(plain), reference(plain)) == 0
    stored_as_rgb = encode(GREY_AS_RGB, "JPEG", quality=95)
    assert difference(decode(stored_as_rgb, grey=True), reference(stored_as_rgb, "L")) <= 1


def test_jpegs_of_four_inks_come_out_as_pillow_decodes_them() -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo(2)).convert("CMYK").save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    assert difference(decode(data), reference(data)) == 0
    assert difference(decode(data), photo(2)) < 60
    assert decode(data, scale=4).shape == (16, 24, 3)


def test_what_a_file_is_is_told_from_its_bytes() -> None:
    png, jpeg = encode(photo(1), "PNG"), encode(photo(1), "JPEG")
    assert difference(EncodedImage(png, "really-a-png.jpg").decode(), photo(1)) == 0
    assert EncodedImage(jpeg, "really-a-jpeg.png").decode().shape == (64, 96, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("grey", [False, True])
def test_the_size_is_known_without_decoding(form: str, grey: bool) -> None:
    data = encode(photo(1, 333, 222), form)
    image = EncodedImage(data[: len(data) // 2] if form != "WEBP" else data, "a", grey)
    assert image.size == (333, 222)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(128, 96), (131, 93), (7, 3), (1, 1)])
def test_shrunk_sizes_are_rounded_up(form: str, size: tuple[int, int], scale: Scale) -> None:
    data = encode(photo(1, *size), form)
    expected = (-(-size[1] // scale), -(-size[0] // scale))
    assert decode(data, scale=scale).shape == (*expected, 3)
    grey = encode(disc(1, *size), form)
    assert decode(grey, grey=True, scale=scale).shape == expected


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("size", [(128, 96), (131, 93)])
def test_foreground_and_alpha_stay_aligned_whatever_their_formats(
    size: tuple[int, int], scale: Scale
) -> None:
    """The same ramp as JPEG and as PNG, shrunk: where a pixel sits shows in its value."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    ramp = (x + y).astype(np.uint8)
    jpeg = encode(ramp, "JPEG", quality=98)
    in_rgb = encode(np.repeat(ramp[..., None], 3, axis=2), "JPEG", quality=98)
    png = encode(ramp, "PNG")
    inner = (slice(0, size[1] // scale), slice(0, size[0] // scale))
    # Pixel (i, j) covers scale x scale pixels from (scale * i, scale * j): its mean lies scale - 1 above its corner.
    truth = (ramp[::scale, ::scale].astype(int) + scale - 1)[inner]
    for data, grey in ((png, True), (jpeg, True), (in_rgb, True), (in_rgb, False)):
        seen = decode(data, grey=grey, scale=scale).astype(int)
        error = (seen if grey else seen[..., 1])[inner] - truth
        assert abs(error.mean()) < 0.3, "half a pixel would be 1 to 4"
        assert np.abs(error).max() <= 3


def test_shrinking_averages_and_repeats_the_border() -> None:
    picture = np.array([[0, 40, 100], [80, 120, 200], [10, 20, 30]], np.uint8)
    assert shrink(picture, 2).tolist() == [[60, 150], [15, 30]]
    assert shrink(picture, 1) is picture
    assert shrink(np.zeros((5, 9, 3), np.uint8), 4).shape == (2, 3, 3)


def test_pixels_that_are_there_are_an_image_too() -> None:
    image = RawImage(photo(1), "made")
    assert image.size == (96, 64)
    assert image.path == "made"
    assert image.decode() is image.decode()
    assert difference(image.decode(2), shrink(photo(1), 2)) == 0


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("lost", [13, 20, 0.5, 0.9])
@pytest.mark.parametrize("scale", [1, 4])
def test_a_truncated_file_is_unreadable_and_never_half_grey(
    form: str, lost: float, scale: Scale
) -> None:
    data = encode(photo(1, 400, 300), form)
    cut = data[: len(data) - (lost if isinstance(lost, int) else int(lost * len(data)))]
    with pytest.raises(UnreadableImage, match=r"^s3://b/a\.jpg: "):
        EncodedImage(cut, "s3://b/a.jpg").decode(scale)


def test_a_truncated_progressive_jpeg_is_unreadable() -> None:
    data = encode(photo(1, 400, 300), "JPEG", progressive=True)
    with pytest.raises(UnreadableImage, match="Premature end of JPEG file"):
        decode(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_file_with_wrong_bytes_in_the_middle_is_unreadable(form: str, place: float) -> None:
    data = bytearray(encode(photo(1, 400, 300), form))
    start = int(len(data) * place)
    data[start : start + 64] = bytes(b ^ 0x5A for b in data[start : start + 64])
    with pytest.raises(UnreadableImage):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"not an image", "is not an image"),
        (b"\xff\xd8\xff" + b"x" * 100, "is not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "is not an image"),
        (b"BM" + b"\0" * 100, "is not an image"),
    ],
)
def test_garbage_is_unreadable(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=rf"^a\.jpg: {reason}"):
        EncodedImage(data, "a.jpg")


def test_a_picture_larger_than_the_warp_can_address_is_unreadable() -> None:
    wide = simplejpeg.encode_jpeg(np.zeros((8, 40_000, 1), np.uint8), colorspace="GRAY")
    with pytest.raises(UnreadableImage, match="is 40000 x 8 pixels: too large"):
        EncodedImage(wide, "a.jpg")


def test_an_unreadable_image_keeps_its_fields_when_pickled() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImage("s3://b/a.jpg", "not found")))
    assert (error.path, error.reason) == ("s3://b/a.jpg", "not found")
    assert error.line == "s3://b/a.jpg: not found"


def test_opencv_is_kept_to_one_thread() -> None:
    use_one_thread()
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_fourth_channel_changes_none_of_the_colours(form: str, scale: Scale) -> None:
    for pixels in (photo(1, 96, 64), photo(2, 95, 61)):
        for tag in (1, 2, 6):
            image = EncodedImage(encode(pixels, form, exif=orientation(tag)), "a")
            padded = image.decode(scale, padded=True)
            assert np.array_equal(padded[..., :3], image.decode(scale))
            assert form != "JPEG" or tag != 1 or padded.shape[2] == 4, "that costs nothing"


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif
