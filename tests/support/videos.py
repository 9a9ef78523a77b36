"""Videos for tests, written and read with PyAV alone; each frame shows its own number."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from tests.support.mattes import Pixels

BITS = 10
BLOCK = 8
SIDES = (96, 64)
"""Width and height."""


class Shown(NamedTuple):
    """A frame as a player shows it, but for its turn."""

    time: Fraction
    pixels: Pixels


def numbered(number: int, sides: tuple[int, int] = SIDES) -> Pixels:
    """A grey frame with its number in black and white blocks along the top, and a red square that moves."""
    width, height = sides
    picture = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 255 * (number >> bit & 1)
    left = 2 * number % (width - 16)
    picture[24:40, left : left + 16] = (220, 30, 40)
    return picture


def number_of(pixels: NDArray[Any]) -> int:
    """Read the number that a frame shows."""
    middle = BLOCK // 2
    bits = [pixels[middle, bit * BLOCK + middle].mean() > 128 for bit in range(BITS)]
    return sum(bit << i for i, bit in enumerate(bits))


def write_video(
    path: Path,
    frames: Sequence[Pixels],
    ticks: Sequence[int] | None = None,
    base: Fraction = Fraction(1, 25),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    sound: bool = False,
) -> Path:
    """Write frames at these ticks of the clock, by default one after the other."""
    with av.open(str(path), "w") as container:
        options = {"crf": "8"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = base
        if sound:
            voice = container.add_stream("aac", rate=8000, layout="mono")
            quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            quiet.sample_rate, quiet.pts = 8000, 0
            container.mux([*voice.encode(quiet), *voice.encode(None)])
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (i if ticks is None else ticks[i]), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_video(path: Path, form: str = "rgb24") -> list[Shown]:
    """Read all frames with their times in seconds."""
    with av.open(str(path)) as container:
        return [
            Shown(frame.pts * frame.time_base, np.asarray(frame.to_ndarray(format=form)))
            for frame in container.decode(video=0)
        ]


def turned(path: Path, clockwise: int) -> Path:
    """Have the file say that players turn it, as phones do: the matrix in its track's header."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise]
    upright = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 0x40000000)
    other = struct.pack(">9i", *(65536 * x for x in (a, b, 0, c, d, 0, 0, 0)), 0x40000000)
    content = path.read_bytes()
    at = content.index(upright, content.index(b"tkhd"))
    path.write_bytes(content[:at] + other + content[at + len(other) :])
    return path


def difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Mean absolute difference in levels of 255."""
    return float(np.abs(a.astype(int) - b).mean())


def shrunk(pixels: Pixels, by: int) -> Pixels:
    """A picture of another size and the same shape."""
    size = (pixels.shape[1] // by, pixels.shape[0] // by)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
