"""What is known of a picture before its pixels are decoded, and refusals that its header alone allows.

DECODING is the version of how pictures are read: a run keeps the one that it began with.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, replace

import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from raymat.data.decoding.blocks import (
    JpegFrame,
    jpeg_frame,
    lacks_end,
    png_bytes,
    png_is_whole,
    with_end,
    without_extras,
    without_texts,
)
from raymat.data.decoding.colour_profile import profile_of
from raymat.data.decoding.kinds import kind_of
from raymat.data.decoding.orientation import (
    ORIENTATION_TAG,
    SHORT,
    UPRIGHT,
    WHOLE,
    Orientation,
    orientation_of,
)
from raymat.data.decoding.stated_colours import (
    HighDynamicRangeError,
    profile_of_avif,
    profile_of_png,
)
from raymat.errors import first_line

DECODING = 7
"""The newest version. 1: no orientation tags, no colour profiles, a matte is its file's brightness, and files without an end
or with long texts are refused. 2: JPEG, PNG and WebP alone, JPEGs with 1x4 chroma sampling are refused, and a colour JPEG is
a matte by its brightness. 3: PNGs whose second checksum, within their compressed pixels, is wrong are refused. 4: colour
spaces count only as RGB profiles, small coloured regions of a matte by their brightness, deep TIFFs that begin with white
are inverted, and an alpha channel that a TIFF does not name is none. 5: an orientation tag counts only as a short number, a
matte of soft greys whose black is named transparent is a mask, and colour JPEGs of inks or rare sampling are mattes. 6: XMP
turns AVIFs alone, an alpha channel that is opaque but for noise is the matte, one that a BMP does not name is none, and the
edges of cut-outs mix with the one colour that their transparent pixels have."""
MEMORY = 7 * 2**28
"""Maximum bytes that decoding a picture takes, beside its file: 256 million pixels of a PNG."""
MAX_SIDE = 32_766  # what OpenCV's warp can address
_MAX_PIXELS = 2**28
"""Before DECODING 3, which counts bytes."""
_MAX_PIXELS_BEFORE = 178_956_970
"""Of a PNG or WebP, before DECODING 2: Pillow's limit."""
_MOST_PER_BYTE = 1024
"""Pixels that a byte of a JPEG can hold: a blank one takes a bit for each 64."""
_MOST_DEFLATED = 1032
"""Bytes that a byte of a PNG can hold."""
_PILLOW_BYTES, _OPENCV_BYTES = 17, 2
"""Memory for a pixel while Pillow decodes it, and for a channel of it while OpenCV does, as measured."""
_ANY_BYTES = 2**25
"""Memory besides."""
Image.MAX_IMAGE_PIXELS = None  # the limits above are checked on the header

# Exceptions of Pillow for malformed files.
PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_FORMATS = {
    1: ("JPEG", "PNG", "WEBP"),
    2: ("JPEG", "PNG", "WEBP"),
}
_ALL_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
"""Pillow's decoders, before DECODING 3 and from then on; its other ones are not safe for untrusted files."""


_OWN_TAGS = ("JPEG", "PNG", "WEBP")
"""Formats whose tags are read here, without decoding anything; Pillow reads those of the others."""


_SUBFILE = 254
"""TIFF's tag for what a directory holds."""
_SPACE = slice(16, 20)
"""Where a profile names the kind of its colours."""


class BadPicture(ValueError):
    """Refusal of a picture, with the reason."""


@dataclass(frozen=True)
class Header:
    """Encoded picture that may be decoded, and what is known of it."""

    data: bytes
    """The file, mended where that is needed to decode it."""
    size: tuple[int, int]
    """Width and height as stored."""
    decoding: int
    frame: JpegFrame | None = None
    """A JPEG's."""
    form: str = "JPEG"
    """Pillow's name of the format."""
    mode: str = ""
    """Pillow's name of the kind of pixels; empty for a JPEG."""
    plain: bool = True
    """Whether there are no transparent pixels."""
    orientation: Orientation = UPRIGHT
    profile: bytes = b""
    """The colour profile, empty for none."""
    cut_out: bool = False
    """Whether the colours of its transparent pixels are made up, so that none mix into its edges."""
    mended: bool = False
    """Whether it had no end marker, so that its pixels may be cut off too."""

    @property
    def by_opencv(self) -> bool:
        """Whether OpenCV decodes the colours."""
        return self.form in ("PNG", "WEBP")

    @property
    def by_turbo(self) -> bool:
        """Whether simplejpeg decodes it: every JPEG but CMYK ones."""
        return self.frame is not None and len(self.frame.sampling) != 4

    @property
    def in_colour(self) -> bool:
        """Whether it is a JPEG of three components, which may all the same be grey."""
        return self.frame is not None and len(self.frame.sampling) == 3

    @property
    def as_cut_out(self) -> Header:
        """The header, to decode it as a cut-out if it has transparent pixels and there is room for that."""
        fits = self.decoding >= 7 and self.memory(4, 1, pillow=True) <= MEMORY
        return replace(self, cut_out=fits and not self.plain)

    def memory(self, channels: int, scale: int, pillow: bool) -> int:
        """Return about how many bytes decoding takes, `scale` times smaller, of which Pillow does it or not."""
        pixels = self.size[0] * self.size[1]
        turned = self.orientation != UPRIGHT or bool(self.profile)
        more = channels * pixels // scale**2 if turned else 0
        more += _ANY_BYTES
        if self.frame is not None and not pillow:
            return channels * pixels // scale**2 + self.frame.coefficients + more
        return pixels * (_PILLOW_BYTES if pillow else _OPENCV_BYTES * channels) + more


def read_header(data: bytes, grey: bool, decoding: int) -> Header:
    """Read the header of a JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF. Raises BadPicture."""
    mended = decoding >= 2 and lacks_end(data)
    if mended:
        data = with_end(data)
    header = _jpeg(data, decoding) if data[:3] == b"\xff\xd8\xff" else _other(data, decoding)
    if decoding >= 2:
        header = replace(_with_tags(header, data, grey), mended=mended)
    _check_size(header)
    return header


def _with_tags(header: Header, data: bytes, grey: bool) -> Header:
    profile = b"" if grey else _colour_space(header, data)
    if header.form not in _OWN_TAGS:  # Pillow has read their tags
        return replace(header, profile=profile)
    kinds = WHOLE if header.decoding >= 6 else (SHORT,)
    orientation = orientation_of(data, kinds, with_xmp=header.decoding >= 7)
    return replace(header, orientation=orientation, profile=profile)


def _colour_space(header: Header, data: bytes) -> bytes:
    """Return the profile of a picture's colours, empty for sRGB. Raises BadPicture."""
    found = profile_of(data) if header.form in _OWN_TAGS else header.profile
    if header.decoding < 5:
        return found if found[_SPACE] in (b"", b"RGB ") else b""
    try:
        if header.form == "PNG":
            stated = profile_of_png(data)
            return found if stated is None else stated
        return profile_of_avif(data) if header.form == "AVIF" and not found else found
    except HighDynamicRangeError as error:
        raise BadPicture(str(error)) from error


def _jpeg(data: bytes, decoding: int) -> Header:
    try:
        frame = jpeg_frame(data)
        if decoding < 3:
            simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:
        raise BadPicture(f"is not an image: {first_line(error)}") from error
    if frame.bits != 8 or frame.lossless:
        kind = "is lossless" if frame.lossless else f"has {frame.bits} bits a sample"
        raise BadPicture(f"{kind}, and only ordinary JPEGs of 8 bits are read: convert it")
    return Header(data, (frame.width, frame.height), decoding, frame)


def _other(data: bytes, decoding: int) -> Header:
    try:
        data, image = _opened(data, decoding)
        with image:
            orientation, profile = UPRIGHT, b""
            if image.format not in _OWN_TAGS:
                profile = image.info.get("icc_profile") or b""
            if image.format == "AVIF":  # Pillow turns a TIFF itself
                orientation = Orientation.of_tag(image.getexif().get(ORIENTATION_TAG))
            return Header(
                data,
                _turned_size(image) if decoding >= 7 else image.size,
                decoding,
                form=image.format or "",
                mode=image.mode,
                plain=not image.has_transparency_data,
                orientation=orientation,
                profile=profile,
            )
    except UnidentifiedImageError as error:
        raise BadPicture(kind_of(data)) from error
    except PILLOW_ERRORS as error:
        raise BadPicture(f"is not an image: {first_line(error)}") from error


def _turned_size(image: Image.Image) -> tuple[int, int]:
    """Return a picture's size as Pillow will decode it: it turns a TIFF also by XMP, but says so of its own tag alone."""
    is_turned = isinstance(image, TiffImageFile) and ORIENTATION_TAG not in image.tag_v2
    tag = image.getexif().get(ORIENTATION_TAG) if is_turned else None
    return Orientation.of_tag(tag).size(image.size)


def _opened(data: bytes, decoding: int) -> tuple[bytes, Image.Image]:
    """Open a picture without decoding it; what is not needed for that is left out, or only texts that are too large."""
    if decoding >= 3:
        data = without_extras(data)
    try:
        return data, open_pillow(data, decoding)
    except ValueError:
        if decoding != 2:
            raise
        data = without_texts(data)
        return data, open_pillow(data, decoding)


def open_pillow(data: bytes, decoding: int) -> Image.Image:
    """Open a picture with Pillow, without decoding it. Raises `PILLOW_ERRORS`."""
    return Image.open(io.BytesIO(data), formats=_FORMATS.get(decoding, _ALL_FORMATS))


def frames_of(data: bytes) -> int:
    """Return how many pictures an animation or a file of pages holds; 1 for what is none, or cannot be read.

    Smaller copies and masks of a page, as cameras and scanners put into a TIFF, do not count.
    """
    if data[:3] == b"\xff\xd8\xff":
        return 1  # what cameras put behind a JPEG is a preview or a map of its depth
    try:
        with open_pillow(data, DECODING) as image:
            count = int(getattr(image, "n_frames", 1))
            if count == 1 or not isinstance(image, TiffImageFile):
                return count
            return 1 + sum(_is_page(image, number) for number in range(1, count))
    except PILLOW_ERRORS:
        return 1


def _is_page(image: TiffImageFile, number: int) -> bool:
    """Return whether a TIFF's directory is a page, rather than a smaller copy (bit 0) or a mask (bit 2) of one."""
    image.seek(number)
    return not int(image.tag_v2.get(_SUBFILE, 0)) & 5


def _check_size(header: Header) -> None:
    """Raise BadPicture if the pixels are too many, or more than the bytes can hold: they would be allocated first."""
    pixels, shown = header.size[0] * header.size[1], by(header.size)
    is_jpeg = header.form == "JPEG"
    most = _MAX_PIXELS if is_jpeg or header.decoding >= 2 else _MAX_PIXELS_BEFORE
    if max(header.size) > MAX_SIDE or (header.decoding < 3 and pixels > most):
        raise BadPicture(f"is {shown} pixels: too large")
    if header.decoding >= 2 and is_jpeg:
        _refuse_claim(header, pixels > _MOST_PER_BYTE * len(header.data))


def check_pixels(header: Header, channels: int, scale: int, pillow: bool) -> None:
    """Raise BadPicture if decoding would take more than `MEMORY`, or if a PNG's bytes do not hold its pixels."""
    if header.decoding < 3:
        return
    needed = header.memory(channels, scale, pillow)
    if needed > MEMORY:
        sizes = f"about {needed / 2**30:.1f} GiB, at most {MEMORY / 2**30:.2f} GiB is used"
        raise BadPicture(f"is {by(header.size)} pixels: decoding it would take {sizes}")
    if header.mended and not png_is_whole(header.data):
        raise BadPicture("is truncated")
    if header.form == "PNG":
        _refuse_claim(header, png_bytes(header.data) > _MOST_DEFLATED * len(header.data))


def _refuse_claim(header: Header, is_false: bool) -> None:
    if is_false:
        claim = f"claims {by(header.size)} pixels in {len(header.data)} bytes"
        raise BadPicture(f"{claim}: truncated or no picture")


def by(size: tuple[int, int]) -> str:
    """Return width and height for people."""
    return f"{size[0]} x {size[1]}"
