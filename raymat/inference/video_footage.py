"""A video to matte, before one background picture or a background video frame by frame."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import repeat

from raymat.data.decode import Pixels
from raymat.errors import DataError
from raymat.inference.background_fit import BackgroundFit
from raymat.inference.pipeline import Stopwatch, ahead
from raymat.inference.shots import Notes, Shot, Timing, Wanted
from raymat.inference.video_reader import Frame, VideoReader

AHEAD = 3
"""Frames read ahead."""


class BackgroundVideo:
    """The frames of a background video, one after the other; `hold`: after the end its last frame again and again."""

    def __init__(self, reader: VideoReader, hold: bool) -> None:
        self._reader = reader
        self._frames = reader.frames()
        self._hold = hold
        self._last: Pixels | None = None

    def check(self, source: VideoReader, notes: Notes) -> None:
        """Raise DataError if it is shorter than the source by what both state; note another frame rate."""
        mine, theirs = self._reader.stated, source.stated
        if 0 < mine < theirs and not self._hold:
            raise DataError(self._too_short(mine))
        rates = [reader.timing.rate for reader in (self._reader, source)]
        if abs(rates[0] / rates[1] - 1) > 0.01:
            notes.add(
                f"has {float(rates[0]):.5g} frames/s and the source {float(rates[1]):.5g}: they are paired frame by frame",
                self._reader.path,
            )

    def next(self, number: int) -> Pixels:
        """Return the next frame, which is that of a source's frame `number`. Raises DataError after the end."""
        frame = next(self._frames, None)
        if frame is not None:
            self._last = frame.pixels
        elif self._last is None or not self._hold:
            raise DataError(self._too_short(number))
        return self._last

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _too_short(self, frames: int) -> str:
        return (
            f"{self._reader.path} ends after {frames} frames, before the source: film it longer, or give "
            "--hold-background to go on with its last frame"
        )


class VideoFootage:
    """Shots of a video's frames, named by their numbers as "000012"."""

    names: list[str] | None = None

    def __init__(
        self,
        source: VideoReader,
        background: Pixels | BackgroundVideo,
        fit: BackgroundFit,
        watch: Stopwatch,
    ) -> None:
        self._source = source
        self._background = background
        self._fit = fit
        self._watch = watch

    @property
    def count(self) -> int:
        """Number of frames as the header says, or 0."""
        return self._source.count

    @property
    def timing(self) -> Timing | None:
        """The source's clock."""
        return self._source.timing

    def shots(self, wanted: Wanted) -> Iterator[Shot]:
        """Yield the wanted frames in order. Raises DataError for what cannot be decoded. Closes the files at its end."""
        frames = self._source.frames()

        def following() -> Shot | None:
            with self._watch.timing("decode"):
                for frame in frames:
                    shot = self._shot(frame, wanted)
                    if shot is not None:
                        return shot
                return None

        try:
            with closing(ahead(repeat(following), threads=1, depth=AHEAD)) as shots:  # type: ignore[type-var]
                for shot in shots:
                    if shot is None:
                        return
                    yield shot
        finally:
            self._source.close()
            if isinstance(self._background, BackgroundVideo):
                self._background.close()

    def _shot(self, frame: Frame, wanted: Wanted) -> Shot | None:
        """Return a frame with its background; None if it is not wanted."""
        name, shown = f"{frame.number:06}", f"{self._source.path}, frame {frame.number}"
        behind = self._background
        background = behind.next(frame.number) if isinstance(behind, BackgroundVideo) else behind
        if not wanted(name):
            return None
        source = frame.pixels
        fitted = self._fit(source, background, shown)
        return Shot(name, shown, source, fitted, frame.time, frame.duration)
