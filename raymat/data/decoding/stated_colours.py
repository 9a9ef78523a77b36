"""Colour spaces that a file states in numbers rather than by a profile: they become a profile, as if it held one.

A PNG has them in chunks (cICP; or gAMA and cHRM), AVIF in a box of its header (colr).
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from raymat.data.decoding.blocks import blocks_of

Primaries: TypeAlias = tuple[float, ...]
"""Chromaticities x, y of red, green, blue and white."""

_D65 = (0.3127, 0.3290)
SRGB: Primaries = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, *_D65)
_PRIMARIES: dict[int, Primaries] = {
    5: (0.640, 0.330, 0.290, 0.600, 0.150, 0.060, *_D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *_D65),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *_D65),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *_D65),
}
"""By their number in ITU-T H.273, table 2; all others are those of sRGB."""
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
"""Exponents by their number in ITU-T H.273, table 3; all others are as sRGB's curve."""
_HDR = {16: "PQ", 18: "HLG"}
_SRGB_GAMMA, _NEAR = 1 / 0.45455, 0.05
_LEAST_GAMMA, _MOST_GAMMA = 0.5, 4.0
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])


class HighDynamicRangeError(ValueError):
    """Refusal of a picture whose values are no shares of a screen's white."""


def profile_of_png(data: bytes) -> bytes | None:
    """Return the profile of what a PNG states before its pixels; empty for sRGB, None if a profile in it counts.

    Raises:
        HighDynamicRangeError: it states PQ or HLG.
    """
    found: dict[bytes, bytes] = {}
    for name, content in blocks_of(data):
        if name == b"IDAT":
            break
        if name in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"):
            found.setdefault(name, bytes(content))
    if len(found.get(b"cICP", b"")) == 4:
        return _coded(*found[b"cICP"][:2])
    if b"iCCP" in found:
        return None
    return b"" if b"sRGB" in found else _measured(found.get(b"gAMA", b""), found.get(b"cHRM", b""))


def profile_of_avif(data: bytes) -> bytes:
    """Return the profile of what an AVIF states in numbers, empty for sRGB. Raises HighDynamicRangeError."""
    for content in _boxes(data, (b"meta", b"iprp", b"ipco", b"colr")):
        if content[:4] == b"nclx" and len(content) >= 8:
            return _coded(*struct.unpack_from(">HH", content, 4))
    return b""


def _boxes(data: bytes, path: tuple[bytes, ...]) -> Iterator[bytes]:
    """Yield the content of each box at a path of names."""
    at = 0
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        if size < 8:  # to the end of the file, or a size of 64 bits: its pixels
            return
        content = data[at + 8 : at + size]
        if name == path[0] and len(path) == 1:
            yield content
        elif name == path[0]:
            yield from _boxes(content[4:] if name == b"meta" else content, path[1:])
        at += size


def _coded(primaries: int, transfer: int) -> bytes:
    if transfer in _HDR:
        raise HighDynamicRangeError(
            f"is of high dynamic range ({_HDR[transfer]}), which is not read: save it in SDR"
        )
    return _profile(_PRIMARIES.get(primaries, SRGB), _GAMMAS.get(transfer))


def _measured(gamma: bytes, chromaticities: bytes) -> bytes:
    """Return the profile of a PNG's gAMA and cHRM; empty for sRGB, also where they are no numbers of a screen."""
    exponent, points = None, SRGB
    if len(gamma) == 4 and any(gamma):
        exponent = 100_000 / struct.unpack(">I", gamma)[0]
        if abs(exponent - _SRGB_GAMMA) < _NEAR:
            exponent = None
        elif not _LEAST_GAMMA <= exponent <= _MOST_GAMMA:
            return b""
    if len(chromaticities) == 32:
        numbers = tuple(n / 100_000 for n in struct.unpack(">8I", chromaticities))
        points = (*numbers[2:], *numbers[:2])  # the white comes first there
    return _profile(points, exponent)


@functools.lru_cache(maxsize=16)
def _profile(points: Primaries, gamma: float | None) -> bytes:
    """Return an ICC profile (version 2); empty for sRGB, or for chromaticities that span nothing."""
    if gamma is None and np.abs(np.subtract(points, SRGB)).max() < 0.002:
        return b""
    matrix = _to_d50(points)
    if matrix is None:
        return b""
    steps = np.linspace(0, 1, 1024)
    bent = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
    levels = np.round((bent if gamma is None else steps**gamma) * 65535).astype(">u2").tobytes()
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 1) + bytes(79),
        b"wtpt": _point(_D50),
        **{name + b"XYZ": _point(matrix[:, i]) for i, name in enumerate((b"r", b"g", b"b"))},
        **{
            name + b"TRC": b"curv" + bytes(4) + struct.pack(">I", len(steps)) + levels
            for name in (b"r", b"g", b"b")
        },
    }
    return _assembled(tags)


def _to_d50(points: Primaries) -> np.ndarray | None:
    """Return the matrix from linear RGB to XYZ as seen under D50: http://www.brucelindbloom.com, RGB/XYZ Matrices."""
    x, y = np.array(points).reshape(4, 2).T
    if (y <= 0).any():
        return None
    columns = np.stack([x / y, np.ones(4), (1 - x - y) / y])
    if abs(np.linalg.det(columns[:, :3])) < 1e-3:
        return None
    matrix = columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])
    cones = _BRADFORD @ np.stack([_D50, columns[:, 3]], axis=1)
    return np.asarray(
        np.linalg.inv(_BRADFORD) @ np.diag(cones[:, 0] / cones[:, 1]) @ _BRADFORD @ matrix
    )


def _point(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def _assembled(tags: dict[bytes, bytes]) -> bytes:
    """Return a profile of a display from its tags: https://www.color.org/icc32.pdf, 6.1 and 6.2."""
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4xI", at + len(body), 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return (head + bytes(28) + _point(_D50)[8:]).ljust(128, b"\0") + table + body
