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
    """Refusal of a picture that cannot be a matte, with the reason."""


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
    if image.mode in ("L", "LA", "1"):
        return stretched(np.asarray(image.convert("L")))
    return stretched(_from_colours(np.asarray(image.convert("RGB"))))


def stretched(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a mask of 0 and 1 as 0 and 255, and everything else as it is."""
    return grey * np.uint8(255) if grey.max(initial=0) == 1 else grey


def _from_16_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return the high 8 bits: of the whole depth, or of a lesser one whose largest value is the largest that occurs."""
    found = np.asarray(values, np.int64)
    most = int(found.max(initial=0))
    if most == 1:
        return np.asarray(found * 255, np.uint8)
    depth = next((d for d in _DEPTHS if most == 2**d - 1), 16)
    return np.asarray(found >> (depth - 8), np.uint8)


def _from_colours(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the brightness of a grey picture, or the one channel that is not constant."""
    varying = [c for c in range(3) if colours[..., c].min() < colours[..., c].max()]
    if len(varying) == 1:
        return np.ascontiguousarray(colours[..., varying[0]])
    spread = colours.max(axis=2).astype(np.int16) - colours.min(axis=2)
    if spread.mean() > MOST_COLOUR:
        raise NoMatteError("is a colour picture, not a matte")
    return np.asarray(cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY), np.uint8)
