"""The matte in a file that is no plain grey one: in its alpha channel, in one colour, or with fewer bits than its pixels have.

What the numbers make certain is taken; what cannot be a matte is refused. Everything else is read by its brightness.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.TiffImagePlugin import TiffImageFile

from raymat.data.decoding.colour_profile import from_inks

MOST_COLOUR = 10.0
"""Mean difference, of 255, of a pixel's colours above which a picture is coloured; lossy formats tint greys by less."""
VIVID, _MOST_VIVID = 48, 0.001
"""Difference of a pixel's colours that no lossy format makes of a grey, and the share of such pixels in what is still grey."""
_DEPTHS = (8, 10, 12, 14, 15)
_DEPTHS_BEFORE = (8, 10, 12)
"""Before DECODING 5."""
_LEAST_WHITE = 1 / 3
"""Share of white in what is not black of a matte; a small soft disc has 0.38, a grey photograph next to none."""
_LEAST_CLEAR = 230
"""Value from which on a pixel of an alpha channel counts as opaque: one of such pixels alone is no matte beside soft greys."""
_PHOTOMETRIC = 262
"""TIFF's tag for what its numbers mean; 0: the lowest one is white."""


class NoMatteError(ValueError):
    """Refusal of a picture whose numbers cannot be a matte, or colours, with the reason."""


def matte_of(image: Image.Image, decoding: int) -> NDArray[np.uint8]:
    """Return the matte in an open picture: (h, w), 0 transparent to 255 opaque.

    An alpha channel that is not constant is the matte, whatever the colours show, unless it repeats them with less depth.

    Raises:
        NoMatteError: it is a colour picture. Pillow's errors, if it cannot be decoded.
    """
    alpha = _alpha_of(image, decoding)
    if alpha is not None and alpha.min() < alpha.max():
        finer = _repeated(image, alpha, decoding) if decoding >= 6 else None
        return alpha if finer is None else finer
    if image.mode.startswith("I"):
        return _from_16_bits(_values(image, decoding), decoding)
    if image.mode == "F":
        return _from_fractions(_values(image, decoding))
    if image.mode in ("L", "LA", "1"):
        return stretched(np.asarray(image.convert("L")))
    return stretched(_from_colours(np.asarray(image.convert("RGB")), decoding))


def _alpha_of(image: Image.Image, decoding: int) -> NDArray[np.uint8] | None:
    """Return the alpha channel, if there is one; in a TIFF or a BMP also a fourth channel that it does not name."""
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA").getchannel("A"))
    if decoding >= 5 and isinstance(image, TiffImageFile):
        return _unnamed_channel(image)
    if decoding >= 7 and isinstance(image, BmpImageFile):
        return _unnamed_channel(image)
    return None


def _repeated(
    image: Image.Image, alpha: NDArray[np.uint8], decoding: int
) -> NDArray[np.uint8] | None:
    """Return the greys of a picture that are a matte of their own; None if its alpha is the one that counts.

    They are where alpha only says which of them are black, as when a matte's black is named transparent, and where much of
    what is left is white, as it is in no cut-out photograph; also where alpha is opaque everywhere, but for noise.
    """
    opaque = alpha >= (_LEAST_CLEAR if decoding >= 7 else 255)
    if not (opaque | (alpha == 0)).all():
        return None
    if image.mode.startswith("I"):
        greys = _from_16_bits(_values(image, decoding), decoding)
    else:
        colours = np.asarray(image.convert("RGB"))
        greys = np.ascontiguousarray(colours[..., 0])
        if any(not np.array_equal(greys, colours[..., i]) for i in (1, 2)):
            return None
    if opaque.all():
        return greys if greys.min() < _LEAST_CLEAR else None
    is_black = not greys[~opaque].any()
    return greys if is_black and np.mean(greys[opaque] == 255) >= _LEAST_WHITE else None


def _unnamed_channel(image: TiffImageFile | BmpImageFile) -> NDArray[np.uint8] | None:
    """Return the channel behind the colours, which Pillow leaves out if the file does not say that it is alpha."""
    # Pillow's name of how the file's numbers lie, and the one that keeps them all.
    kept = {"RGBX": "RGBA", "LX": "LA", "BGRX": "BGRA"}
    args = [tile.args if isinstance(tile.args, tuple) else ("",) for tile in image.tile]
    form = kept.get(args[0][0]) if args else None
    if form is None:
        return None
    image.tile = [
        tile._replace(args=(form, *rest[1:])) for tile, rest in zip(image.tile, args, strict=True)
    ]
    image._mode = {"BGRA": "RGBA"}.get(form, form)
    return np.asarray(image.getchannel("A"))


def _values(image: Image.Image, decoding: int) -> NDArray[Any]:
    """Return the numbers of more than 8 bits in a picture; Pillow leaves those of a TIFF that begins with white inverted."""
    values = np.asarray(image)
    if decoding < 5 or not isinstance(image, TiffImageFile) or image.tag_v2.get(_PHOTOMETRIC) != 0:
        return values
    return 1 - values if image.mode == "F" else 65_535 - values.astype(np.int64)


def stretched(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a mask of 0 and 1 as 0 and 255, and everything else as it is."""
    return grey * np.uint8(255) if grey.max(initial=0) == 1 else grey


def refuse_colours(colours: NDArray[np.uint8], decoding: int) -> None:
    """Raise NoMatteError if RGB pixels (h, w, 3) are no greys, also in a small part of the picture."""
    red, green, blue = cv2.split(colours)
    spread = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    vivid = np.count_nonzero(spread > VIVID) if decoding >= 5 else 0
    if cv2.mean(spread)[0] > MOST_COLOUR or vivid > spread.size * _MOST_VIVID:
        raise NoMatteError("is a colour picture, not a matte")


def rgb_of(image: Image.Image, decoding: int, profile: bytes) -> NDArray[np.uint8]:
    """Return the colours (h, w, 3) in an open picture; of 16 bits the high 8, of fractions 0 to 1 as many steps of 255.

    Inks become colours by `profile`, if it is one of inks.

    Raises:
        NoMatteError: it has numbers of another range. Pillow's errors, if it cannot be decoded.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = _values(image, decoding)
        grey = _from_fractions(values) if image.mode == "F" else _high_bits(values, 16)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "CMYK":
        return np.asarray(from_inks(image, profile))
    return np.asarray(image.convert("RGB"))


def _from_fractions(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    found = np.asarray(values, np.float32)
    if not (found.min(initial=0) >= 0 and found.max(initial=0) <= 1):
        raise NoMatteError("has floating-point numbers beyond 0 to 1")
    return np.asarray(np.rint(found * 255), np.uint8)


def _high_bits(values: NDArray[np.generic], depth: int) -> NDArray[np.uint8]:
    found = np.asarray(values, np.int64)
    if found.min(initial=0) < 0 or found.max(initial=0) > 65_535:
        raise NoMatteError("has numbers beyond 16 bits")
    return np.asarray(found >> (depth - 8), np.uint8)


def _from_16_bits(values: NDArray[np.generic], decoding: int) -> NDArray[np.uint8]:
    """Return the high 8 bits: of the whole depth, or of a lesser one whose largest value is the largest that occurs."""
    found = np.asarray(values, np.int64)
    most = int(found.max(initial=0))
    if most == 1:
        return np.asarray(found * 255, np.uint8)
    depths = _DEPTHS if decoding >= 5 else _DEPTHS_BEFORE
    depth = next((d for d in depths if most == 2**d - 1), 16)
    return _high_bits(found, depth)


def _from_colours(colours: NDArray[np.uint8], decoding: int) -> NDArray[np.uint8]:
    """Return the brightness of a grey picture, the one channel that is not constant, or a mask in one colour on black."""
    mask = _one_colour(colours) if decoding >= 5 else None
    if mask is not None:
        return mask
    varying = [c for c in range(3) if colours[..., c].min() < colours[..., c].max()]
    if len(varying) == 1:
        return np.ascontiguousarray(colours[..., varying[0]])
    refuse_colours(colours, decoding)
    return np.asarray(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), np.uint8)


def _one_colour(colours: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return where a picture has its one colour on black, as palettes of classes show a mask; None if it has more, or a grey."""
    there = colours.any(axis=2)
    first = int(there.argmax())
    colour = colours.reshape(-1, 3)[first]
    if int(colour.max()) - int(colour.min()) <= VIVID:
        return None
    is_alone = bool((colours[there] == colour).all())
    return np.asarray(there * np.uint8(255), np.uint8) if is_alone else None
