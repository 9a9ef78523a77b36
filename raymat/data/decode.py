"""Decoding of pictures to uint8 pixels, at full size or shrunk by 2, 4 or 8.

A file's format is told from its first bytes, not from its name. JPEGs go through libjpeg-turbo
(simplejpeg), which shrinks while it decodes; everything else through OpenCV, except CMYK JPEGs
(Pillow). Pictures are turned upright by their orientation tag (EXIF), except in runs that were begun
before they were, and their colours become sRGB. 16 bits become 8, palettes become colours.
The alpha channel of a foreground or background is dropped; where a matte is found is said in matte.py.

A picture shrunk by k has ceil(width / k) x ceil(height / k) pixels, and pixel (i, j) of it covers
the pixels k*i..k*i+k-1, k*j..k*j+k-1 of the full one, whatever the format: foreground and alpha
stay aligned, and a map from full-size coordinates only has to be divided by k.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import zlib
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol, TypeAlias, get_args

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from raymat.data.colour_profile import profile_of, to_srgb
from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.file_blocks import lacks_end, with_end, without_texts
from raymat.data.matte import NoMatteError, matte_of, stretched
from raymat.data.matte_statistics import MatteStatistics
from raymat.data.orientation import UPRIGHT, orientation_of
from raymat.errors import first_line

Pixels: TypeAlias = NDArray[np.uint8]
Scale = Literal[1, 2, 4, 8]
SCALES: tuple[Scale, ...] = get_args(Scale)
DECODING = 2
"""Version of how pictures are read, kept with each run. 1: no orientation tags, no colour profiles, a matte is its
file's brightness, and files without an end or with long texts are refused."""
MAX_SIDE = 32_766  # what OpenCV's warp can address
MAX_PIXELS = 2**28
_MAX_PIXELS_BEFORE = 178_956_970
"""Of a PNG or WebP, before DECODING 2: Pillow's limit."""
_MOST_PER_BYTE = 1024
"""Pixels that a byte of a JPEG can hold: a blank one takes a bit for each 64."""
Image.MAX_IMAGE_PIXELS = None  # the limits above are checked on the header

# Exceptions of Pillow for malformed files.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP")  # its other decoders are not safe for untrusted files


class OpenImage(Protocol):
    """Picture whose size is known and whose pixels are not decoded yet."""

    @property
    def size(self) -> tuple[int, int]:
        """Full width and height in pixels."""
        ...

    @property
    def path(self) -> str:
        """Origin, for messages."""
        ...

    @property
    def statistics(self) -> MatteStatistics | None:
        """Numbers of the alpha that was decoded, if it was opened for them."""
        ...

    def decode(self, scale: Scale = 1) -> Pixels:
        """Decode to RGB (h, w, 3), or grey (h, w) for an alpha, shrunk by `scale`.

        Raises:
            UnreadableImage: it cannot be decoded.
        """
        ...


class EncodedImage:
    """Encoded `OpenImage` over a file's bytes; `grey` asks for one channel instead of RGB, `look` for its statistics.

    `decoding`: the version of how pictures are read, as in `DECODING`.

    Raises:
        UnreadableImage: the bytes are not the beginning of a JPEG, PNG or WebP image, or it is too
            large.
    """

    def __init__(
        self,
        data: bytes,
        path: str,
        grey: bool = False,
        decoding: int = DECODING,
        look: bool = False,
    ) -> None:
        self._data = with_end(data) if decoding >= 2 and lacks_end(data) else data
        self._decoding = decoding
        self._orientation = orientation_of(data) if decoding >= 2 else UPRIGHT
        self._profile = profile_of(data) if decoding >= 2 and not grey else b""
        self._path = path
        self._grey = grey
        self._look = look
        self.statistics: MatteStatistics | None = None
        self._is_jpeg = data[:3] == b"\xff\xd8\xff"
        self._finds_matte = grey and decoding >= 2
        self._depth = 8
        self._hides_matte = False
        """Whether the matte may be elsewhere than in the brightness."""
        self._size, self._is_cmyk = self._read_header()
        self._check_size()

    @property
    def size(self) -> tuple[int, int]:
        return self._orientation.size(self._size)

    @property
    def path(self) -> str:
        return self._path

    def decode(self, scale: Scale = 1) -> Pixels:
        stored = self._stored_scale(scale)
        if self._is_jpeg and not self._is_cmyk:
            pixels = self._decode_jpeg(stored)
            if self._look:
                found = MatteStatistics.of(pixels)
                self.statistics = found if stored == 1 else replace(found, edge=None)
        else:
            with_pillow = self._is_cmyk or self._hides_matte
            whole = self._decode_pillow() if with_pillow else self._decode_opencv()
            if self._look:
                self.statistics = MatteStatistics.of(whole, depth=self._depth)
            pixels = shrink(whole, stored)
        left = SCALES[(scale // stored).bit_length() - 1]
        return to_srgb(shrink(self._orientation.apply(pixels), left), self._profile)

    def _stored_scale(self, scale: Scale) -> Scale:
        """Return by how much to shrink before the picture is turned: the squares must begin where the upright picture does."""
        mirrored = self._orientation.upside_down or self._orientation.mirrored
        fitting = [s for s in SCALES if s <= scale and not (self._size[0] % s or self._size[1] % s)]
        return fitting[-1] if mirrored else scale

    def _check_size(self) -> None:
        """Raise UnreadableImage if the pixels are too many, or more than the bytes can hold: they would be allocated first."""
        pixels = self._size[0] * self._size[1]
        most = MAX_PIXELS if self._is_jpeg or self._decoding >= 2 else _MAX_PIXELS_BEFORE
        if max(self._size) > MAX_SIDE or pixels > most:
            raise UnreadableImage(self._path, f"is {_by(self._size)} pixels: too large")
        if self._is_jpeg and self._decoding >= 2 and pixels > _MOST_PER_BYTE * len(self._data):
            claim = f"claims {_by(self._size)} pixels in {len(self._data)} bytes"
            raise UnreadableImage(self._path, f"{claim}: truncated or no picture")

    def _read_header(self) -> tuple[tuple[int, int], bool]:
        """Return (width, height), and whether it is a CMYK JPEG."""
        try:
            if self._is_jpeg:
                height, width, colours, _ = simplejpeg.decode_jpeg_header(self._data)
                return (int(width), int(height)), colours in ("CMYK", "YCCK")
            with self._open_pillow() as image:
                plain = image.mode == "L" and not image.has_transparency_data
                self._hides_matte = self._finds_matte and not plain
                self._depth = 16 if image.mode.startswith("I") else 8
                return image.size, False
        except UnidentifiedImageError as error:
            reason = "is not an image (JPEG, PNG or WebP)" if self._data else "is empty"
            raise UnreadableImage(self._path, reason) from error
        except _PILLOW_ERRORS as error:
            raise UnreadableImage(self._path, f"is not an image: {first_line(error)}") from error

    def _open_pillow(self) -> Image.Image:
        """Open the picture without decoding it; without texts, where they are too large."""
        try:
            return Image.open(io.BytesIO(self._data), formats=_PILLOW_FORMATS)
        except ValueError:
            if self._decoding < 2 or self._is_jpeg:
                raise
            self._data = without_texts(self._data)
            return Image.open(io.BytesIO(self._data), formats=_PILLOW_FORMATS)

    def _decode_jpeg(self, scale: Scale) -> Pixels:
        # Strict, by default: libjpeg only warns, and fills with grey, if data is missing or corrupt.
        # The minimum sizes choose the scale; without them simplejpeg's min_factor reads an uninitialised variable.
        decode = partial(
            simplejpeg.decode_jpeg,
            colorspace="GRAY" if self._grey else "RGB",
            min_height=-(-self._size[1] // scale),
            min_width=-(-self._size[0] // scale),
        )
        try:
            try:
                pixels = decode(self._data)
            except ValueError as error:
                if self._decoding < 2 or "Premature end" not in str(error):
                    raise
                with contextlib.suppress(ValueError):
                    return self._shaped(decode(with_end(self._data)), scale)
                raise
        except ValueError as error:
            raise UnreadableImage(self._path, first_line(error)) from error
        return self._shaped(pixels, scale)

    def _shaped(self, pixels: Pixels, scale: Scale) -> Pixels:
        return self._checked(pixels[..., 0] if self._grey else pixels, scale)

    def _decode_opencv(self) -> Pixels:
        colours = cv2.IMREAD_GRAYSCALE if self._grey else cv2.IMREAD_COLOR_RGB
        flags = colours | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels = cv2.imdecode(np.frombuffer(self._data, np.uint8), flags)
        except cv2.error as error:
            raise UnreadableImage(self._path, first_line(error)) from error
        if pixels is None:
            raise UnreadableImage(self._path, "is truncated or corrupt")
        found = np.asarray(pixels, np.uint8)
        return self._checked(stretched(found) if self._finds_matte else found, 1)

    def _decode_pillow(self) -> Pixels:
        try:
            with Image.open(io.BytesIO(self._data), formats=_PILLOW_FORMATS) as image:
                if self._hides_matte:
                    return self._checked(matte_of(image), 1)
                return self._checked(np.asarray(image.convert("L" if self._grey else "RGB")), 1)
        except NoMatteError as error:
            raise UnreadableImage(self._path, str(error)) from error
        except _PILLOW_ERRORS as error:
            raise UnreadableImage(self._path, first_line(error)) from error

    def _checked(self, pixels: Pixels, scale: Scale) -> Pixels:
        """Return the pixels if they have the header's size; else raise UnreadableImage."""
        height, width = pixels.shape[:2]
        expected = (-(-self._size[0] // scale), -(-self._size[1] // scale))
        if (width, height) != expected:
            raise UnreadableImage(
                self._path, f"decoded to {_by((width, height))} pixels, expected {_by(expected)}"
            )
        return pixels


class RawImage:
    """Decoded `OpenImage`: uint8 RGB (h, w, 3) or grey (h, w)."""

    def __init__(self, pixels: Pixels, path: str) -> None:
        self._pixels = pixels
        self._path = path

    @property
    def size(self) -> tuple[int, int]:
        return self._pixels.shape[1], self._pixels.shape[0]

    @property
    def path(self) -> str:
        return self._path

    @property
    def statistics(self) -> MatteStatistics | None:
        return None

    def decode(self, scale: Scale = 1) -> Pixels:
        return shrink(self._pixels, scale)


def shrink(pixels: Pixels, scale: Scale) -> Pixels:
    """Average squares of `scale` x `scale` pixels; the last row and column are repeated to fill the last squares."""
    if scale == 1:
        return pixels
    height, width = pixels.shape[:2]
    below, right = -height % scale, -width % scale
    if below or right:
        padded = cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE)
        pixels = np.asarray(padded, np.uint8)
    size = ((width + right) // scale, (height + below) // scale)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


@functools.cache
def use_one_thread() -> None:
    """Keep OpenCV to the calling thread, once per process: there is a reading process for every core."""
    cv2.setNumThreads(1)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
