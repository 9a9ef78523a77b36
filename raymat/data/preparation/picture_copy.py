"""A picture of a smaller copy: upright, sRGB, shrunk without aliasing, encoded for quick decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import simplejpeg

from raymat.data.decode import SCALES, EncodedImage, OpenImage, Pixels, Scale

Alpha = Literal["png", "jpeg"]


@dataclass(frozen=True, kw_only=True)
class CopySettings:
    """How pictures are copied: the longest side in pixels, the quality of JPEGs (1 to 100), the kind of alphas."""

    longest: int
    quality: int
    alpha: Alpha


class Copied(NamedTuple):
    """Picture of the copy: its file, and the end of its name."""

    data: bytes
    suffix: str


def target_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return the width and height of the copy of a picture of `size`: its longest side is at most `longest`."""
    most = max(size)
    if most <= longest:
        return size
    width, height = (max(1, round(side * longest / most)) for side in size)
    return width, height


def copy_colours(image: OpenImage, settings: CopySettings) -> Copied:
    """Copy a foreground or a background as a JPEG; one that is small enough as it is. Raises UnreadableImage."""
    pixels = shrink_to(image, settings.longest)
    kept = _as_stored(image, settings.longest, ("JPEG",))
    if kept is not None:
        return kept
    data = simplejpeg.encode_jpeg(
        pixels,
        quality=settings.quality,
        colorspace="RGB",
        colorsubsampling="420",
        fastdct=False,
    )
    return Copied(data, ".jpg")


def copy_matte(image: OpenImage, settings: CopySettings) -> Copied:
    """Copy an alpha as a grey PNG or JPEG; one that is small enough as it is. Raises UnreadableImage."""
    pixels = shrink_to(image, settings.longest)
    kept = _as_stored(
        image, settings.longest, ("JPEG", "PNG") if settings.alpha == "png" else ("JPEG",)
    )
    if kept is not None:
        return kept
    if settings.alpha == "png":
        done, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])
        assert done, "OpenCV encodes every grey picture"
        return Copied(encoded.tobytes(), ".png")
    grey = {"colorspace": "GRAY", "colorsubsampling": "GRAY", "fastdct": False}
    return Copied(
        simplejpeg.encode_jpeg(pixels[..., None], quality=settings.quality, **grey), ".jpg"
    )


_COMPRESSION = 6
"""Of PNGs, 0 to 9."""


def shrink_to(image: OpenImage, longest: int) -> Pixels:
    """Decode a picture and average its pixels to `target_size`. Raises UnreadableImage."""
    size = target_size(image.size, longest)
    pixels = image.decode(_scale(image.size, size))
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _scale(size: tuple[int, int], target: tuple[int, int]) -> Scale:
    """Return by how much a picture may be shrunk as it is decoded: by what divides its sides, and leaves at least the target."""
    fitting = (
        k
        for k in SCALES
        if all(s % k == 0 and s // k >= t for s, t in zip(size, target, strict=True))
    )
    return max(fitting, default=1)


def _as_stored(image: OpenImage, longest: int, forms: tuple[str, ...]) -> Copied | None:
    """Return the picture's own file if it is small enough, of one of the `forms`, upright and without a colour profile."""
    if max(image.size) > longest or not isinstance(image, EncodedImage):
        return None
    data = image.as_stored(forms)
    return None if data is None else Copied(data, ".jpg" if data[:2] == b"\xff\xd8" else ".png")
