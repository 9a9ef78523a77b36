"""Reads a video: its frames upright, in RGB, in order, each with its time."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raymat.data.decode import Pixels
from raymat.data.decoding.orientation import UPRIGHT, Orientation
from raymat.errors import DataError, one_line
from raymat.inference.shots import Notes, Timing

if TYPE_CHECKING:
    import av

UNSPECIFIED, BT709, BT601 = 2, 1, 5
"""Matrices from YUV to RGB, as H.273 and FFmpeg number them."""
HD_HEIGHT = 720
"""From this height on, players take a video that does not say for BT.709, below for BT.601."""
HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions of high dynamic range, as H.273 and FFmpeg number them."""
SLACK = Fraction(1, 10)
"""Seconds by which a video may end before the time that its header states."""
USUAL_RATE = Fraction(25)
"""Frames a second of a video that does not say."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A decoded frame, not yet turned into RGB."""

    number: int
    time: Fraction
    """Seconds after the first frame."""
    duration: Fraction
    """Seconds; 0 if not known."""
    decoded: av.VideoFrame

    @property
    def pixels(self) -> Pixels:
        """Upright RGB (h, w, 3)."""
        space = self.decoded.colorspace
        if space == UNSPECIFIED:
            space = BT709 if self.decoded.height >= HD_HEIGHT else BT601
        stored = self.decoded.to_ndarray(format="rgb24", src_colorspace=space)
        return _orientation(self.decoded).apply(np.asarray(stored, np.uint8))


class VideoReader:
    """Reader of the first video stream of a file; belongs to one thread at a time."""

    def __init__(self, path: str, notes: Notes) -> None:
        """Open the file. Raises DataError: it is no video, or its header cannot be read."""
        import av

        self._path = path
        self._notes = notes
        self._failure = av.error.FFmpegError
        try:
            self._container = av.open(path)
        except (self._failure, OSError) as error:
            raise DataError(f"{path}: cannot be read as a video: {_reason(error)}") from error
        if not self._container.streams.video:
            raise DataError(f"{path}: holds no video")
        best = self._container.streams.best("video")  # not the cover beside it
        self._stream = cast("av.VideoStream", best or self._container.streams.video[0])
        if cast("av.VideoCodecContext | None", self._stream.codec_context) is None:
            raise DataError(
                f"{path}: its video cannot be decoded: its header is cut off, or its codec is not known"
            )
        self._stream.thread_type = "AUTO"

    @property
    def path(self) -> str:
        """The file, for messages."""
        return self._path

    @property
    def has_sound(self) -> bool:
        """Whether there is sound beside the video."""
        return bool(self._container.streams.audio)

    @property
    def stated(self) -> int:
        """Number of frames that the header states; 0 if it does not."""
        return int(self._stream.frames)

    @property
    def count(self) -> int:
        """Number of frames by the header, if need be from length and rate; 0 if it says neither."""
        if self.stated:
            return self.stated
        base, length = self._stream.time_base, self._stream.duration
        seconds = Fraction(self._container.duration or 0, 1_000_000)
        if length and base:
            seconds = length * base
        return round(seconds * self._rate)

    @property
    def timing(self) -> Timing:
        """The video's clock."""
        base = self._stream.time_base or 1 / self._rate
        aspect = self._stream.codec_context.sample_aspect_ratio or Fraction(1)
        return Timing(base, self._rate, aspect)

    @property
    def _rate(self) -> Fraction:
        return self._stream.average_rate or self._stream.guessed_rate or USUAL_RATE

    def frames(self) -> Iterator[Frame]:
        """Decode the frames, once. Raises DataError: a frame cannot be decoded, or has another size than the first."""
        number, first, last, end = 0, None, None, None
        size: tuple[int, int] | None = None
        base = self.timing.base
        for decoded in self._decoded():
            self._check(decoded, number, size or (decoded.width, decoded.height))
            size = (decoded.width, decoded.height)
            if decoded.pts is None:
                time = Fraction(0) if last is None else last + 1 / self._rate
            else:
                first = decoded.pts if first is None else first
                time = (decoded.pts - first) * base
            if last is not None and time <= last:
                self._notes.add(
                    "does not come after the frame before it: shown a moment after it",
                    f"{self._path}, frame {number}",
                )
                time = last + base
            last = time
            end = _end_of(decoded, base, self._rate)
            yield Frame(number, time, (decoded.duration or 0) * base, decoded)
            number += 1
        if number == 0:
            raise DataError(f"{self._path}: holds no frames")
        self._note_cut(number, end)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _note_cut(self, number: int, end: Fraction | None) -> None:
        """Note that there were fewer frames, or for a shorter time, than the header states."""
        length = _stated_end(self._stream)
        if self.stated:
            stated, shown = f"{self.stated} frames", f"{number}"
            is_cut = number < self.stated
        elif end is not None and length is not None:  # a Matroska or WebM states no number
            stated, shown = f"{float(length):.2f} s", f"{float(end):.2f} s"
            is_cut = end + 2 / self._rate + SLACK < length
        else:
            return
        if is_cut:
            self._notes.add(
                f"states {stated} and shows {shown}: the rest is cut off or missing", self._path
            )

    def _decoded(self) -> Iterator[av.VideoFrame]:
        number = 0
        try:
            for decoded in self._container.decode(self._stream):
                yield decoded
                number += 1
        except self._failure as error:
            raise DataError(
                f"{self._path}: cannot be decoded after {number} frames: {_reason(error)}"
            ) from error

    def _check(self, decoded: av.VideoFrame, number: int, size: tuple[int, int]) -> None:
        where = f"{self._path}, frame {number}"
        if (decoded.width, decoded.height) != size:
            raise DataError(
                f"{where}: is {decoded.width} x {decoded.height} pixels, the frames before it {size[0]} x {size[1]}: "
                "cut the video there"
            )
        if decoded.is_corrupt:
            raise DataError(f"{where}: is damaged")
        if number == 0 and decoded.color_trc in HDR:
            kind = HDR[decoded.color_trc]
            self._notes.add(
                f"is of high dynamic range ({kind}), which is read as if it were not: film in SDR",
                self._path,
            )


def _stated_end(stream: av.VideoStream) -> Fraction | None:
    """Return when a file's video ends as its header says, in seconds from the file's beginning; None if it does not."""
    if stream.duration and stream.time_base:
        return ((stream.start_time or 0) + stream.duration) * stream.time_base
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if found is None:
        return None
    hours, minutes, seconds = map(Fraction, found.groups())
    return 3600 * hours + 60 * minutes + seconds


def _end_of(decoded: av.VideoFrame, base: Fraction, rate: Fraction) -> Fraction | None:
    """Return when the next frame would be due, in seconds from the file's beginning; None if its time is not known."""
    if decoded.pts is None:
        return None
    return decoded.pts * base + max((decoded.duration or 0) * base, 1 / rate)


def _orientation(decoded: av.VideoFrame) -> Orientation:
    """Return how a phone held the camera: the display matrix, of turns by 90 degrees and mirrors."""
    held: Any = decoded.side_data  # its type says that it is a mapping of names
    data = next((bytes(x) for x in held if x.type.name == "DISPLAYMATRIX"), None)
    if data is None:
        return UPRIGHT
    a, b, _, c, d = struct.unpack_from("=5i", data)
    transposed = a == 0 == d
    return Orientation(transposed, (b if transposed else d) < 0, (c if transposed else a) < 0)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or one_line(error)
