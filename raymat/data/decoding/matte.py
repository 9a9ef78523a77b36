"""The matte in a file that is no plain grey one: in its alpha channel, in one colour, or with fewer bits than its pixels have.

What the numbers make certain is taken; what cannot be a matte is refused. Everything else is read by its brightness.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_COLOUR = 10.0
"""Mean difference, of 255, of a pixel's colours above which a picture is coloured; lossy formats tint greys by less."""
_DEPTHS = (8, 10, 12)


class NoMatteError(ValueError):
    """Refusal of a picture whose numbers cannot be a matte, or colours, with the reason."""


def matte_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return the matte in an open picture: (h, w), 0 transparent to 255 opaque.

    An alpha channel that is not constant is the matte, whatever the colours show.

    Raises:
        NoMatteError: it is a colour picture. Pillow's errors, if it cannot be decoded.
    """
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() < alpha.max():
            return alpha
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image))
    if image.mode == "F":
        return _from_fractions(np.asarray(image))
    if image.mode in ("L", "LA", "1"):
        return stretched(np.asarray(image.convert("L")))
    return stretched(_from_colours(np.asarray(image.convert("RGB"))))


def stretched(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a mask of 0 and 1 as 0 and 255, and everything else as it is."""
    return grey * np.uint8(255) if grey.max(initial=0) == 1 else grey


def refuse_colours(colours: NDArray[np.uint8]) -> None:
    """Raise NoMatteError if RGB pixels (h, w, 3) are no greys."""
    red, green, blue = cv2.split(colours)
    spread = cv2.subtract(cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue))
    if cv2.mean(spread)[0] > MOST_COLOUR:
        raise NoMatteError("is a colour picture, not a matte")


def rgb_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return the colours (h, w, 3) in an open picture; of 16 bits the high 8, of fractions 0 to 1 as many steps of 255.

    Raises:
        NoMatteError: it has numbers of another range. Pillow's errors, if it cannot be decoded.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        grey = _from_fractions(values) if image.mode == "F" else _high_bits(values, 16)
        return np.repeat(grey[..., None], 3, axis=2)
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


def _from_16_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return the high 8 bits: of the whole depth, or of a lesser one whose largest value is the largest that occurs."""
    found = np.asarray(values, np.int64)
    most = int(found.max(initial=0))
    if most == 1:
        return np.asarray(found * 255, np.uint8)
    depth = next((d for d in _DEPTHS if most == 2**d - 1), 16)
    return _high_bits(found, depth)


def _from_colours(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the brightness of a grey picture, or the one channel that is not constant."""
    varying = [c for c in range(3) if colours[..., c].min() < colours[..., c].max()]
    if len(varying) == 1:
        return np.ascontiguousarray(colours[..., varying[0]])
    refuse_colours(colours)
    return np.asarray(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), np.uint8)
