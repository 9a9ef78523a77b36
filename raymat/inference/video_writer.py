"""Writes videos with the source's times: H.264 in .mp4, ProRes 4444 in .mov, each whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from raymat.errors import StorageError, one_line
from raymat.inference.pipeline import Stopwatch
from raymat.inference.rendering import OutputType, Picture
from raymat.inference.shots import Notes, Shot, Timing
from raymat.storage.output_files import drafted

if TYPE_CHECKING:
    import av

BT709, LIMITED = 1, 1
"""Colours as H.273 and FFmpeg number them: what HD is, and what players take a video for."""


@dataclass(frozen=True)
class Codec:
    """How frames are encoded."""

    name: str
    pixels: str
    options: Mapping[str, str]
    even: bool
    """Whether both sides are even."""


H264 = Codec("libx264", "yuv420p", {"crf": "16", "preset": "medium"}, even=True)
PRORES = Codec("prores_ks", "yuv444p10le", {"profile": "4444"}, even=False)
PRORES_ALPHA = Codec(
    "prores_ks", "yuva444p10le", {"profile": "4444", "alpha_bits": "16"}, even=False
)


def codec_of(path: str, picture: Picture) -> Codec:
    """Return what a file's name and its pictures ask for."""
    if path.lower().endswith(".mp4"):
        return H264
    return PRORES_ALPHA if picture.ndim == 3 and picture.shape[2] == 4 else PRORES


class VideoWriter:
    """Writer of a video for each type, at `path_of(type)`; the files are in place after the block, unless it fails."""

    def __init__(
        self, path_of: Callable[[OutputType], str], timing: Timing, watch: Stopwatch, notes: Notes
    ) -> None:
        self._path_of = path_of
        self._timing = timing
        self._watch = watch
        self._notes = notes
        self._tracks: dict[OutputType, _Track] = {}
        self._stack = ExitStack()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, shot: Shot, pictures: Mapping[OutputType, Picture]) -> None:
        """Write the pictures of the next shot. Raises StorageError."""
        with self._watch.timing("encode"):
            for kind, picture in pictures.items():
                if kind not in self._tracks:
                    path = self._path_of(kind)
                    self._note_odd_sides(path, picture)
                    opened = _video_file(path, picture, self._timing)
                    self._tracks[kind] = self._stack.enter_context(opened)
                self._tracks[kind].write(picture, shot.time, shot.duration)

    def _note_odd_sides(self, path: str, picture: Picture) -> None:
        if codec_of(path, picture).even and (picture.shape[0] % 2 or picture.shape[1] % 2):
            self._notes.add(
                "H.264 needs even sides: the last row or column is repeated; a .mov keeps the size",
                path,
            )


class _Track:
    """The frames of one file."""

    def __init__(self, path: str, draft: str, picture: Picture, timing: Timing) -> None:
        import av

        self._path = path
        self._codec = codec_of(path, picture)
        self._base = timing.base
        self._last: av.VideoFrame | None = None
        height, width = _sides(picture, self._codec)
        with _failing(path):
            ending = path.lower().rpartition(".")[2]
            self._container = av.open(draft, "w", format=ending)
            made = self._container.add_stream(
                self._codec.name, rate=timing.rate, options=dict(self._codec.options)
            )
            self._stream = cast("av.VideoStream", made)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = self._codec.pixels
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = timing.base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        if timing.aspect != 1:
            context.sample_aspect_ratio = timing.aspect

    def write(self, picture: Picture, time: Fraction, duration: Fraction) -> None:
        """Encode a frame that is shown at `time` for `duration`, in seconds."""
        import av

        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, axis=2)
        height, width = _sides(picture, self._codec)
        if (height, width) != picture.shape[:2]:
            more = (height - picture.shape[0], width - picture.shape[1])
            picture = np.asarray(
                cv2.copyMakeBorder(picture, 0, more[0], 0, more[1], cv2.BORDER_REPLICATE)
            )
        form = "rgba" if picture.shape[2] == 4 else "rgb24"
        with _failing(self._path):
            whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=form)
            frame = whole.reformat(format=self._codec.pixels, dst_colorspace=BT709)
            frame.time_base = self._base
            frame.pts = round(time / self._base)
            frame.duration = round(duration / self._base)
            self._container.mux(self._stream.encode(frame))

    def flush(self) -> None:
        """Encode what the encoder holds back."""
        with _failing(self._path):
            self._container.mux(self._stream.encode(None))

    def close(self) -> None:
        """Write the end of the file."""
        with _failing(self._path):
            self._container.close()


@contextmanager
def _video_file(path: str, picture: Picture, timing: Timing) -> Iterator[_Track]:
    with drafted(path) as draft:
        track = _Track(path, draft, picture, timing)
        try:
            yield track
            track.flush()
        finally:
            track.close()


@contextmanager
def _failing(path: str) -> Iterator[None]:
    """Turn FFmpeg's errors into a StorageError."""
    import av

    try:
        yield
    except av.error.FFmpegError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or one_line(error)}") from error


def _sides(picture: Picture, codec: Codec) -> tuple[int, int]:
    """Return height and width as they are encoded."""
    height, width = picture.shape[:2]
    return (height + height % 2, width + width % 2) if codec.even else (height, width)
