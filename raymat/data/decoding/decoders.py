"""Decoders of whole pictures to uint8: libjpeg-turbo (simplejpeg), OpenCV and Pillow. All raise BadPicture.

What lacks pixels is refused, and no decoder prints anything: the reason carries the file's name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from raymat.data.decoding.blocks import png_fault, with_end, with_filling, without_padding
from raymat.data.decoding.cut_out import continued
from raymat.data.decoding.header import PILLOW_ERRORS, BadPicture, Header, by, open_pillow
from raymat.data.decoding.matte import (
    NoMatteError,
    matte_of,
    refuse_colours,
    rgb_of,
    stretched,
)
from raymat.data.decoding.quick_png import decode_png
from raymat.errors import first_line

Pixels = NDArray[np.uint8]


def decode_jpeg(header: Header, channels: int, scale: int) -> Pixels:
    """Decode a JPEG to brightness (h, w), RGB (h, w, 3) or RGB and a channel of no meaning, shrunk by 1, 2, 4 or 8."""
    grey = channels == 1
    if grey and header.decoding >= 3 and header.in_colour:
        _refuse_colours(header)
    try:
        return _decode_turbo(header, _TURBO[channels], scale)
    except ValueError as error:
        if header.decoding < 3 or "subsampling" not in str(error):
            raise BadPicture(first_line(error)) from error
    return shrink(decode_pillow(header, grey), scale)


def _refuse_colours(header: Header) -> None:
    try:
        small = _decode_turbo(header, "RGB", 8)
    except ValueError:
        return  # what is wrong with the file is said where it is decoded
    try:
        refuse_colours(small, header.decoding)
    except NoMatteError as error:
        raise BadPicture(str(error)) from error


_TURBO = {1: "GRAY", 3: "RGB", 4: "RGBX"}
"""simplejpeg's names of kinds of pixels, by their channels."""


def _decode_turbo(header: Header, colours: str, scale: int) -> Pixels:
    # Strict, by default: libjpeg only warns, and fills with grey, if data is missing or corrupt.
    # The minimum sizes choose the scale; without them simplejpeg's min_factor reads an uninitialised variable.
    decode = partial(
        simplejpeg.decode_jpeg,
        colorspace=colours,
        min_height=-(-header.size[1] // scale),
        min_width=-(-header.size[0] // scale),
    )
    data: bytes | None = header.data
    first: ValueError | None = None
    while data is not None:
        try:
            pixels = decode(data)
            return _checked(pixels[..., 0] if colours == "GRAY" else pixels, header, scale)
        except ValueError as error:
            first = first or error
            data = _mended(data, str(error), header.decoding)
    assert first is not None
    raise first


def _mended(data: bytes, complaint: str, decoding: int) -> bytes | None:
    """Return a JPEG without what its decoder complains of, where that hides no pixels; None if there is nothing to mend."""
    if decoding >= 2 and "Premature end" in complaint:
        mended = with_end(data)
        return None if data.endswith(mended[len(data) :]) else mended
    if decoding >= 3 and "extraneous bytes before marker 0xd9" in complaint:
        return without_padding(data)
    return None


def decode_opencv(header: Header, grey: bool) -> Pixels:
    """Decode a PNG or WebP to RGB (h, w, 3) or brightness (h, w); the plain ones by a quicker decoder."""
    colours = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
    flags = colours | cv2.IMREAD_IGNORE_ORIENTATION
    fault = png_fault(header.data) if header.form == "PNG" and header.decoding >= 3 else None
    if fault:
        raise BadPicture(f"is truncated or corrupt: {fault}")
    found = decode_png(header)
    if found is None:
        found = _decode_opencv(header.data, flags)
        found = _continued(found, header) if header.cut_out else found
    elif not grey and found.ndim == 2:
        found = np.asarray(cv2.cvtColor(found, cv2.COLOR_GRAY2RGB), np.uint8)
    elif not grey and found.shape[2] == 4:
        alpha = found[..., 3]
        found = np.asarray(cv2.cvtColor(found, cv2.COLOR_RGBA2RGB), np.uint8)
        found = continued(found, alpha) if header.cut_out else found
    return _checked(stretched(found) if grey and header.decoding >= 2 else found, header, 1)


def _decode_opencv(data: bytes, flags: int) -> Pixels:
    try:
        pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise BadPicture(first_line(error)) from error
    if pixels is None:
        raise BadPicture("is truncated or corrupt")
    return np.asarray(pixels, np.uint8)


def _continued(pixels: Pixels, header: Header) -> Pixels:
    """Return the colours (h, w, 3) of a cut-out, as `continued` does."""
    with open_pillow(header.data, header.decoding) as image:
        return continued(pixels, np.asarray(image.convert("RGBA").getchannel("A")))


def decode_pillow(header: Header, grey: bool) -> Pixels:
    """Decode any picture to RGB (h, w, 3) or to the matte in it (h, w)."""
    if header.frame is None or header.decoding < 3:
        return _decode_pillow(header, header.data, grey)
    # With an end marker Pillow fills with grey what lacks of a JPEG.
    pixels = _decode_pillow(header, with_end(header.data), grey)
    if not np.array_equal(pixels, _decode_pillow(header, with_filling(header.data), grey)):
        raise BadPicture("is truncated")
    return pixels


def _decode_pillow(header: Header, data: bytes, grey: bool) -> Pixels:
    try:
        with _opened(header, data) as image:
            if grey and header.decoding >= 2 and header.frame is None:
                return _checked(matte_of(image, header.decoding), header, 1)
            if grey:
                if header.decoding >= 6:
                    refuse_colours(np.asarray(image.convert("RGB")), header.decoding)
                return _checked(np.asarray(image.convert("L")), header, 1)
            pixels = rgb_of(image, header.decoding, header.profile)
            return _checked(_continued(pixels, header) if header.cut_out else pixels, header, 1)
    except NoMatteError as error:
        raise BadPicture(str(error)) from error
    except PILLOW_ERRORS as error:
        raise BadPicture(first_line(error)) from error


def _opened(header: Header, data: bytes) -> Image.Image:
    quick = decode_png(header)
    return open_pillow(data, header.decoding) if quick is None else Image.fromarray(quick)


def shrink(pixels: Pixels, scale: int) -> Pixels:
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


def _checked(pixels: Pixels, header: Header, scale: int) -> Pixels:
    """Return the pixels if they have the header's size. Raises BadPicture."""
    height, width = pixels.shape[:2]
    expected = (-(-header.size[0] // scale), -(-header.size[1] // scale))
    if (width, height) != expected:
        raise BadPicture(f"decoded to {by((width, height))} pixels, expected {by(expected)}")
    return pixels
