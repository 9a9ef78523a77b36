"""Pictures to matte: one or a folder of them, before one background or a folder with a background for each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial

from raymat.data.dataset.discovery import NAMED_IN_ERRORS
from raymat.data.dataset.file_names import ANY_NAMES, composed, without_junk
from raymat.data.dataset.image_folder import Folder
from raymat.data.decode import EncodedImage, Pixels
from raymat.data.decoding.header import frames_of
from raymat.errors import DataError
from raymat.inference.background_fit import BackgroundFit
from raymat.inference.pipeline import Stopwatch, ahead
from raymat.inference.shots import Notes, Shot, Timing, Wanted

AHEAD = 2
"""Pictures read ahead."""


class Pictures:
    """Pictures at any fsspec URL, by their path without ending."""

    def __init__(self, folder: Folder, files: dict[str, str], notes: Notes) -> None:
        self._folder = folder
        self._notes = notes
        self.files = files
        """Path in the folder, by the same without ending."""

    @classmethod
    def file(cls, url: str, notes: Notes) -> Pictures:
        """Return the one picture at a URL. Raises DataError."""
        folder, _, name = url.rpartition("/")
        return cls(Folder(folder or "."), {os.path.splitext(name)[0]: name}, notes)

    @classmethod
    def below(cls, url: str, notes: Notes) -> Pictures:
        """List a folder, with its folders. Raises DataError: it has no pictures, or two of one name."""
        folder = Folder(url)
        found = folder.find("", ANY_NAMES.is_junk)
        if found is None:
            raise DataError(f"no such file or folder: {folder.shown()}")
        files, _ = without_junk(found, ANY_NAMES)
        names = sorted(name for name in files if ANY_NAMES.split(name, False)[1])
        if not names:
            raise DataError(f"no pictures ({ANY_NAMES.kinds}) in {folder.shown()}")
        for name in sorted(set(files) - set(names)):
            notes.add(f"left out of {folder.shown()}: only {ANY_NAMES.kinds} are read", name)
        stems = Counter(os.path.splitext(name)[0] for name in names)
        twice = [name for name in names if stems[os.path.splitext(name)[0]] > 1]
        if twice:
            raise DataError(
                f"{folder.shown()} has {_first(twice)}: their outputs would have one name, rename or remove one"
            )
        return cls(folder, {os.path.splitext(name)[0]: name for name in names}, notes)

    @property
    def where(self) -> str:
        """The folder, for messages."""
        return self._folder.shown()

    def shown(self, name: str) -> str:
        """Return a picture's URL, for messages."""
        return self._folder.shown(self.files[name])

    def read(self, name: str) -> Pixels:
        """Read a picture as training reads its own. Raises DataError."""
        content = self._folder.read(self.files[name])
        if (count := frames_of(content)) > 1:
            self._notes.add(
                f"holds {count} pictures, of which the first is read: make a video or a folder of them to matte all",
                self.shown(name),
            )
        return EncodedImage(content, self.shown(name)).decode()


class PictureFootage:
    """Shots of pictures; `backgrounds` has a picture of each source's name, or one for all."""

    timing: Timing | None = None

    def __init__(
        self,
        sources: Pictures,
        backgrounds: Pictures | Pixels,
        fit: BackgroundFit,
        watch: Stopwatch,
    ) -> None:
        """Pair sources with backgrounds. Raises DataError: some have none."""
        self._sources = sources
        self._backgrounds = backgrounds
        self._fit = fit
        self._watch = watch
        self.names: list[str] = list(sources.files)
        self.count = len(self.names)
        if isinstance(backgrounds, Pictures):
            alike = {composed(name): name for name in backgrounds.files}
            known = alike | {name: name for name in backgrounds.files}
            found = ((n, known.get(n, alike.get(composed(n)))) for n in self.names)
            self._partners = {name: partner for name, partner in found if partner is not None}
            lonely = [sources.files[n] for n in self.names if n not in self._partners]
            if lonely:
                raise DataError(
                    f"{len(lonely)} of {self.count} pictures have no background of their name in "
                    f"{backgrounds.where}: {_first(lonely)}"
                )

    def shots(self, wanted: Wanted) -> Iterator[Shot]:
        """Yield the wanted shots, in order of their names. Raises DataError for a picture that cannot be read."""
        tasks = (partial(self._shot, name) for name in self.names if wanted(name))
        with closing(ahead(tasks, threads=1, depth=AHEAD)) as shots:  # type: ignore[type-var]
            yield from shots

    def _shot(self, name: str) -> Shot:
        with self._watch.timing("decode"):
            source = self._sources.read(name)
            known = self._backgrounds
            background = known.read(self._partners[name]) if isinstance(known, Pictures) else known
            shown = self._sources.shown(name)
            return Shot(name, shown, source, self._fit(source, background, shown))


def _first(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_IN_ERRORS} more" if len(names) > NAMED_IN_ERRORS else ""
    return ", ".join(names[:NAMED_IN_ERRORS]) + more
