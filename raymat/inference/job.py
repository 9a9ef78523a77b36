"""A matting job, from what the user names to the last file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial

from raymat.errors import ConfigError
from raymat.inference.background_fit import BackgroundFit
from raymat.inference.destination import Destination, Existing
from raymat.inference.homography import Aligner
from raymat.inference.matter import Matter
from raymat.inference.media import Medium, medium_of
from raymat.inference.picture_footage import PictureFootage, Pictures
from raymat.inference.picture_writer import PictureWriter
from raymat.inference.pipeline import Behind, Stopwatch
from raymat.inference.rendering import GREEN, Backdrop, OutputType, Picture, Renderer, colour_of
from raymat.inference.shots import Footage, Notes, Shot
from raymat.inference.video_footage import BackgroundVideo, VideoFootage
from raymat.inference.video_reader import VideoReader
from raymat.inference.video_writer import VideoWriter
from raymat.storage.urls import redact

BEHIND = 4
"""Shots whose pictures wait to be written."""


@dataclass(frozen=True, kw_only=True)
class MattingRequest:
    """What to matte, and where to."""

    source: str
    background: str
    output: str
    types: tuple[OutputType, ...] = ("com",)
    composite: str | None = None
    """Colour or picture behind `com`."""
    alpha_bits: int = 8
    batch_size: int = 1
    existing: Existing = "refuse"
    align: bool = False
    background_fit: bool = False
    hold_background: bool = False


@dataclass(frozen=True)
class MattingReport:
    """What a job did."""

    shots: int
    skipped: int
    """Shots whose outputs were there."""
    size: tuple[int, int]
    """Height and width of the last shot in pixels; 0, 0 if there was none."""
    seconds: float
    work: Mapping[str, float]
    """Seconds of decode, network and encode, each in its own threads."""


@dataclass(frozen=True, eq=False)
class MattingJob:
    """A job whose inputs are there and whose outputs can be written."""

    request: MattingRequest
    footage: Footage
    destination: Destination
    renderer: Renderer
    notes: Notes
    watch: Stopwatch = field(default_factory=Stopwatch)

    @classmethod
    def open(cls, request: MattingRequest) -> MattingJob:
        """Look at all inputs and at what is there of the outputs.

        Raises:
            ConfigError: the request cannot be met. DataError: an input cannot be read.
        """
        notes, watch = Notes(), Stopwatch()
        destination = Destination.of(request.output, request.types)
        renderer = Renderer(
            request.types, _backdrop(request, destination, notes), request.alpha_bits
        )
        footage = _footage(request, notes, watch)
        job = cls(request, footage, destination, renderer, notes, watch)
        job._check()
        return job

    def run(
        self, matter: Matter, on_shot: Callable[[int], None] = lambda done: None
    ) -> MattingReport:
        """Matte all shots and write their outputs; `on_shot` is called with 1 for each that is done.

        Raises:
            ConfigError, DataError, StorageError, WeightsError: the job cannot go on. Outputs that are in place stay.
        """
        self.renderer.check(matter.refines)
        began, done, skipped, size = time.perf_counter(), 0, 0, (0, 0)
        keep = self.request.existing == "resume"

        def wanted(name: str) -> bool:
            nonlocal skipped
            there = keep and self.destination.is_there(name)
            skipped += there
            on_shot(int(there))
            return not there

        threads = 1 if self.destination.is_video else 2
        with (
            ExitStack() as stack
        ):  # left in reverse: first all is written, then the files are put in place
            writer = self._writer()
            stack.enter_context(writer)
            behind = stack.enter_context(Behind(threads=threads, depth=BEHIND))
            shots = stack.enter_context(closing(self.footage.shots(wanted)))  # type: ignore[type-var]
            for batch in _batches(shots, self.request.batch_size):
                for shot, pictures in self._matted(matter, batch):
                    behind.submit(partial(writer.write, shot, pictures))
                    on_shot(1)
                done, size = done + len(batch), batch[-1].size
        return MattingReport(done, skipped, size, time.perf_counter() - began, self.watch.seconds)

    def _matted(
        self, matter: Matter, batch: list[Shot]
    ) -> Iterator[tuple[Shot, dict[OutputType, Picture]]]:
        with self.watch.timing("network"):
            rendered = [self.renderer(found) for found in matter(batch)]
        yield from zip(batch, rendered, strict=True)

    def _writer(self) -> PictureWriter | VideoWriter:
        path_of, timing = self.destination.path_of, self.footage.timing
        if self.destination.is_video and timing is not None:
            return VideoWriter(path_of, timing, self.watch, self.notes)
        return PictureWriter(path_of, self.watch)

    def _check(self) -> None:
        destination, names = self.destination, self.footage.names
        self._refuse_inputs()
        if self.request.existing == "refuse":
            destination.refuse_existing(names)
        if destination.is_video and self.request.alpha_bits != 8:
            raise ConfigError(
                f"--alpha-bits {self.request.alpha_bits}: videos have their own depth: leave it out, or name a folder"
            )
        if self.request.alpha_bits != 8 and "pha" not in self.request.types:
            raise ConfigError(
                f"--alpha-bits {self.request.alpha_bits}: says how pha is written, which --output-type leaves out"
            )
        if destination.is_video and self.footage.timing is None:
            raise ConfigError(
                f"--output {destination.path}: the source is no video: use .png or a folder"
            )
        if destination.is_file and not destination.is_video and (names is None or len(names) > 1):
            raise ConfigError(
                f"--output {destination.path}: the source has many pictures: name a folder"
            )

    def _refuse_inputs(self) -> None:
        request = self.request
        if os.path.realpath(request.source) == os.path.realpath(request.background):
            raise ConfigError(
                f"--background {redact(request.background)} is the source itself: give the scene without the subject"
            )
        inputs = [request.source, request.background]
        if request.composite is not None and colour_of(request.composite) is None:
            inputs.append(request.composite)
        self.destination.refuse_inputs(inputs, self.footage.names)


def _batches(shots: Iterator[Shot], most: int) -> Iterator[list[Shot]]:
    """Group consecutive shots of one size, `most` together at most."""
    batch: list[Shot] = []
    for shot in shots:
        if batch and (len(batch) == most or shot.size != batch[0].size):
            yield batch
            batch = []
        batch.append(shot)
    if batch:
        yield batch


def _backdrop(request: MattingRequest, destination: Destination, notes: Notes) -> Backdrop | None:
    """Return what stands behind the composite; None if that has alpha."""
    if request.composite is None:
        return None if destination.holds_alpha else colour_of(GREEN)
    if "com" not in request.types:
        raise ConfigError(
            "--composite: says what stands behind com, which --output-type leaves out"
        )
    colour = colour_of(request.composite)
    if colour is not None:
        return colour
    if not _may_be_picture(request.composite):
        raise ConfigError(
            f"--composite {request.composite}: expected a colour (white, #78ff9b) or a picture"
        )
    (name,) = (picture := Pictures.file(request.composite, notes)).files
    return Backdrop(picture.read(name))


def _may_be_picture(text: str) -> bool:
    """Return whether this names a picture. Raises DataError if it looks like one that is not there."""
    is_word = not os.path.splitext(text)[1] and os.sep not in text and not os.path.exists(text)
    return not is_word and medium_of("--composite", text) == "picture"


def _footage(request: MattingRequest, notes: Notes, watch: Stopwatch) -> Footage:
    """Open source and background together."""
    source = medium_of("--source", request.source)
    background = medium_of("--background", request.background)
    fit = BackgroundFit(notes, request.background_fit, Aligner() if request.align else None)
    if source == "video":
        return _video(request, background, fit, watch)
    if background == "video":
        raise ConfigError(
            "--background: a video stands behind a video: give a picture, or a folder with one for each source"
        )
    if request.hold_background:
        raise ConfigError("--hold-background: there is no video whose last frame could be held")
    sources = _pictures(request.source, source, notes)
    backgrounds = _pictures(request.background, background, notes)
    if background == "picture":
        (name,) = backgrounds.files
        return PictureFootage(sources, backgrounds.read(name), fit, watch)
    return PictureFootage(sources, backgrounds, fit, watch)


def _pictures(url: str, medium: Medium, notes: Notes) -> Pictures:
    return Pictures.file(url, notes) if medium == "picture" else Pictures.below(url, notes)


def _video(
    request: MattingRequest, background: Medium, fit: BackgroundFit, watch: Stopwatch
) -> VideoFootage:
    if background == "folder":
        raise ConfigError(
            f"--background: behind a video stands a picture or a video, {redact(request.background)} is a folder"
        )
    source = VideoReader(request.source, fit.notes)
    if source.has_sound:
        fit.notes.add(
            "its sound is not copied; ffmpeg -i OUT -i SOURCE -map 0:v -map 1:a -c copy NEW adds it",
            source.path,
        )
    if background == "picture":
        if request.hold_background:
            raise ConfigError(
                "--hold-background: the background is a picture, which is held anyway"
            )
        pictures = Pictures.file(request.background, fit.notes)
        (name,) = pictures.files
        return VideoFootage(source, pictures.read(name), fit, watch)
    behind = BackgroundVideo(VideoReader(request.background, fit.notes), request.hold_background)
    behind.check(source, fit.notes)
    return VideoFootage(source, behind, fit, watch)
