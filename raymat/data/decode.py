"""Decoding of pictures to uint8 pixels, at full size or shrunk by 2, 4 or 8.

A file's format is told from its first bytes, not from its name. JPEGs go through libjpeg-turbo
(simplejpeg), which shrinks while it decodes, PNG and WebP through OpenCV, and the rest through Pillow:
TIFF, BMP, GIF, AVIF, CMYK JPEGs, and mattes that are not plain grey. Pictures are turned upright by their
orientation tag (EXIF, else XMP), except in runs that were begun before they were, and their colours become sRGB.
16 bits become 8, palettes become colours. The alpha channel of a foreground or background is dropped (of a
foreground, decoding/cut_out.py); where a matte is found is said in decoding/matte.py.

A picture shrunk by k has ceil(width / k) x ceil(height / k) pixels, and pixel (i, j) of it covers
the pixels k*i..k*i+k-1, k*j..k*j+k-1 of the full one, whatever the format: foreground and alpha
stay aligned, and a map from full-size coordinates only has to be divided by k.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection
from dataclasses import replace
from typing import Literal, Protocol, TypeAlias, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from raymat.data.dataset.image_folder import UnreadableImage
from raymat.data.decoding.colour_profile import to_srgb
from raymat.data.decoding.decoders import decode_jpeg, decode_opencv, decode_pillow, shrink
from raymat.data.decoding.header import (
    DECODING,
    MEMORY,
    BadPicture,
    check_pixels,
    frames_of,
    read_header,
)
from raymat.data.decoding.orientation import UPRIGHT
from raymat.data.matte_statistics import MatteStatistics

__all__ = [
    "SCALES",
    "EncodedImage",
    "OpenImage",
    "Pixels",
    "RawImage",
    "Scale",
    "UnreadableImage",
    "shrink",
    "use_one_thread",
]

Pixels: TypeAlias = NDArray[np.uint8]
Scale = Literal[1, 2, 4, 8]
SCALES: tuple[Scale, ...] = get_args(Scale)


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
    def depth(self) -> int:
        """Bits of a grey pixel in the file: 8 or 16."""
        ...

    @property
    def frames(self) -> int:
        """Pictures in the file, of which the first is read; looked for when asked."""
        ...

    @property
    def statistics(self) -> MatteStatistics | None:
        """Numbers of the alpha that was decoded, if it was opened for them."""
        ...

    def decode(self, scale: Scale = 1, padded: bool = False) -> Pixels:
        """Decode to RGB (h, w, 3), or grey (h, w) for an alpha, shrunk by `scale`.

        `padded`: RGB may have a fourth channel of no meaning, where that costs nothing.

        Raises:
            UnreadableImage: it cannot be decoded.
        """
        ...


class EncodedImage:
    """Encoded `OpenImage` over a file's bytes; `grey` asks for one channel instead of RGB, `look` for its statistics.

    `decoding`: the version of how pictures are read, as in `DECODING`. `cut_out`: whether it is a foreground, whose
    transparent pixels take their colours from its edges (decoding/cut_out.py).

    Raises:
        UnreadableImage: the bytes are not the beginning of a picture that is read, or it is too large.
    """

    def __init__(
        self,
        data: bytes,
        path: str,
        grey: bool = False,
        decoding: int = DECODING,
        look: bool = False,
        cut_out: bool = False,
    ) -> None:
        self._data, self._path, self._grey, self._look = data, path, grey, look
        self.statistics: MatteStatistics | None = None
        try:
            header = read_header(data, grey, decoding)
        except BadPicture as error:
            raise UnreadableImage(path, str(error)) from error
        self._header = header.as_cut_out if cut_out else header

    @property
    def size(self) -> tuple[int, int]:
        return self._header.orientation.size(self._header.size)

    @property
    def path(self) -> str:
        return self._path

    @property
    def depth(self) -> int:
        return 16 if self._header.mode.startswith("I") else 8

    @property
    def frames(self) -> int:
        return frames_of(self._data)

    def as_stored(self, forms: Collection[str]) -> bytes | None:
        """Return the file if it is of one of Pillow's formats `forms`, upright, without a colour profile, and a matte grey."""
        header = self._header
        is_matte = not self._grey or header.frame is not None or header.mode == "L"
        plain = header.orientation == UPRIGHT and not header.profile and header.plain
        return header.data if header.form in forms and plain and is_matte else None

    def decode(self, scale: Scale = 1, padded: bool = False) -> Pixels:
        stored = self._stored_scale(scale)
        padded = padded and stored == scale and not (self._grey or self._header.profile)
        try:
            pixels = self._decode(stored, padded)
        except BadPicture as error:
            raise UnreadableImage(self._path, str(error)) from error
        left = SCALES[(scale // stored).bit_length() - 1]
        upright = self._header.orientation.apply(pixels)
        return to_srgb(shrink(upright, left), self._header.profile)

    def _stored_scale(self, scale: Scale) -> Scale:
        """Return by how much to shrink before the picture is turned: the squares must begin where the upright picture does."""
        header = self._header
        mirrored = header.orientation.upside_down or header.orientation.mirrored
        fitting = [
            s for s in SCALES if s <= scale and not (header.size[0] % s or header.size[1] % s)
        ]
        return fitting[-1] if mirrored else scale

    def _decode(self, scale: Scale, padded: bool) -> Pixels:
        """Decode the picture as it is stored, shrunk by `scale`. Raises BadPicture."""
        header, grey = self._header, self._grey
        channels = 1 if grey else 3
        if header.by_turbo:
            check_pixels(header, channels, scale, pillow=False)
            if padded and header.memory(4, scale, pillow=False) <= MEMORY:
                channels = 4
            pixels = decode_jpeg(header, channels, scale)
            self._measure(pixels, whole=scale == 1)
            return pixels
        hides_matte = grey and header.decoding >= 2 and not (header.mode == "L" and header.plain)
        pillow = hides_matte or not header.by_opencv
        check_pixels(header, channels, 1, pillow)
        pixels = decode_pillow(header, grey) if pillow else decode_opencv(header, grey)
        self._measure(pixels, whole=True)
        return shrink(pixels, scale)

    def _measure(self, pixels: Pixels, whole: bool) -> None:
        if self._look:
            found = MatteStatistics.of(pixels, depth=self.depth)
            self.statistics = found if whole else replace(found, edge=None)


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
    def depth(self) -> int:
        return 8

    @property
    def frames(self) -> int:
        return 1

    @property
    def statistics(self) -> MatteStatistics | None:
        return None

    def decode(self, scale: Scale = 1, padded: bool = False) -> Pixels:
        return shrink(self._pixels, scale)


@functools.cache
def use_one_thread() -> None:
    """Keep OpenCV to the calling thread, once per process: there is a reading process for every core.

    Pillow's remarks on files that it reads all the same are dropped: they do not say which file.
    """
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", module=r"PIL\b")
