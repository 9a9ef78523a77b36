"""Embedded colour profiles: pictures of other colour spaces (Display P3 of phones, Adobe RGB of cameras) become sRGB.

A file without a profile, or with one of sRGB, is left as it is and costs nothing more.
"""

from __future__ import annotations

import functools
import io
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from raymat.data.decoding.blocks import ICC_NAMES, blocks_of

SAME = 2
"""Maximum difference, of 255, between colours before and after for a profile that counts as sRGB."""
_ROWS = 256
_JPEG_HEAD = b"ICC_PROFILE\0"


def to_srgb(pixels: NDArray[np.uint8], profile: bytes) -> NDArray[np.uint8]:
    """Return RGB pixels (h, w, 3) of the colour space of `profile`, empty for none, as sRGB.

    A profile of greys counts for pixels that are grey. One of inks counts before (`from_inks`).
    """
    transform = _transform(profile) if profile else None
    if transform is None or (transform.input_mode == "L" and not _is_grey(pixels)):
        return pixels
    found = np.empty_like(pixels)
    for begin in range(0, len(pixels), _ROWS):  # in strips: Pillow's copies take thrice the memory
        rows = slice(begin, begin + _ROWS)
        found[rows] = _apply(transform, pixels[rows])
    return found


def from_inks(image: Image.Image, profile: bytes) -> Image.Image:
    """Return a CMYK picture as sRGB by its profile, or without one of inks as Pillow mixes them."""
    if profile[16:20] != b"CMYK":
        return image.convert("RGB")
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        found = ImageCms.profileToProfile(image, space, _srgb(), _INTENT, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        found = None
    return image.convert("RGB") if found is None else found


def _is_grey(pixels: NDArray[np.uint8]) -> bool:
    first = pixels[..., 0]
    return all(np.array_equal(first, pixels[..., i]) for i in (1, 2))


def profile_of(data: bytes) -> bytes:
    """Return the colour profile in an encoded JPEG, PNG or WebP; empty without one, or if it is damaged."""
    parts: dict[int, bytes] = {}
    for name, content in blocks_of(data):
        if name == b"IDAT":  # a PNG's comes before its pixels
            break
        if name not in ICC_NAMES:
            continue
        if name == b"ICCP":
            return bytes(content)
        if name == b"iCCP":
            return _inflated(bytes(content))
        if content[:12] == _JPEG_HEAD and len(content) > 14:
            parts[content[12]] = bytes(content[14:])
    return b"".join(parts[number] for number in sorted(parts))


def _inflated(content: bytes) -> bytes:
    """Return the profile in a PNG's chunk: a name, a zero, the method, the compressed profile."""
    _, _, rest = content.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(rest[1:], _MOST_BYTES)
    except zlib.error:
        return b""


_MOST_BYTES = 4 * 2**20
"""Of a profile; what a small file inflates to is not believed without a limit."""


_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the way from a profile to sRGB; None if it is sRGB, is not one of RGB or greys, or cannot be used."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L"}.get(space.profile.xcolor_space.strip())
        if mode is None:
            return None
        found = ImageCms.buildTransform(space, _srgb(), mode, "RGB", _INTENT)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    probe = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(27, 27, 3)
    if mode == "L":
        probe = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    moved = np.abs(_apply(found, probe).astype(int) - probe).max()
    return found if moved > SAME else None


def _apply(transform: ImageCms.ImageCmsTransform, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    given = np.ascontiguousarray(pixels[..., 0]) if transform.input_mode == "L" else pixels
    found = ImageCms.applyTransform(Image.fromarray(given), transform)
    assert found is not None  # None only where it works in place
    return np.asarray(found)
