"""Where outputs go: a file, a file for each type, or a folder, told from the name; and what may be there already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raymat.errors import ConfigError
from raymat.inference.rendering import OutputType

Kind = Literal["picture", "pictures", "video"]
Existing = Literal["refuse", "overwrite", "resume"]

PICTURE = ".png"
VIDEOS = (".mp4", ".mov")
ALPHA = (PICTURE, ".mov")
"""Endings of files that can hold alpha."""
_OTHERS = (".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".exr")
_OTHER_VIDEOS = (".mkv", ".webm", ".avi", ".m4v")


@dataclass(frozen=True)
class Destination:
    """Place of the outputs on this machine."""

    path: str
    """As given: OUT.png, OUT.mp4, OUT.mov, or a folder."""
    types: tuple[OutputType, ...]

    @classmethod
    def of(cls, path: str, types: Sequence[OutputType]) -> Destination:
        """Raises ConfigError if nothing can be written by that name."""
        if not path.strip():
            raise ConfigError("--output is empty: name a .png, .mp4 or .mov, or a folder")
        ending = os.path.splitext(path)[1].lower()
        if "://" in path:
            raise ConfigError(
                f"--output {path}: expected a path of this machine: write here and copy it"
            )
        if ending in _OTHERS:
            raise ConfigError(f"--output {path}: pictures are written as PNG: use {PICTURE}")
        if ending in _OTHER_VIDEOS:
            raise ConfigError(
                f"--output {path}: videos are written as .mp4 (H.264) or .mov (ProRes 4444)"
            )
        destination = cls(path, tuple(types))
        if destination.is_file and os.path.isdir(path):
            raise ConfigError(f"--output {path}: a folder is there: name a file, or remove it")
        if not destination.is_file and os.path.exists(path) and not os.path.isdir(path):
            raise ConfigError(
                f"--output {path}: expected a folder, or a name in .png, .mp4 or .mov"
            )
        folder = os.path.dirname(os.path.abspath(path))
        if destination.is_file and not os.path.isdir(folder):
            raise ConfigError(f"--output {path}: there is no folder {folder}")
        return destination

    @property
    def ending(self) -> str:
        """The ending of its files, in lower case."""
        ending = os.path.splitext(self.path)[1].lower()
        return ending if ending in (PICTURE, *VIDEOS) else PICTURE

    @property
    def is_file(self) -> bool:
        """Whether it names a file, rather than a folder of pictures."""
        return os.path.splitext(self.path)[1].lower() in (PICTURE, *VIDEOS)

    @property
    def is_video(self) -> bool:
        """Whether it names a video."""
        return self.ending in VIDEOS

    @property
    def holds_alpha(self) -> bool:
        """Whether its files can hold alpha."""
        return self.ending in ALPHA

    def path_of(self, kind: OutputType, name: str = "") -> str:
        """Return the path of an output: several types have a file OUT-TYPE.png or a folder OUT/TYPE each."""
        if self.is_file:
            stem, ending = os.path.splitext(self.path)
            return self.path if len(self.types) == 1 else f"{stem}-{kind}{ending}"
        folder = self.path if len(self.types) == 1 else os.path.join(self.path, kind)
        return os.path.join(folder, name + PICTURE)

    def is_there(self, name: str = "") -> bool:
        """Return whether all outputs of a shot are there."""
        return all(os.path.exists(self.path_of(kind, name)) for kind in self.types)

    def refuse_existing(self, names: Sequence[str] | None) -> None:
        """Raise ConfigError if any output is there. `names`: of the shots; None: a video's, which are numbers."""
        if self.is_file:
            there = [p for kind in self.types if os.path.exists(p := self.path_of(kind))]
        else:
            shots = ["000000"] if names is None else names
            paths = (self.path_of(kind, name) for name in shots for kind in self.types)
            there = [path for path in paths if os.path.exists(path)]
        if there:
            more = f" and {len(there) - 1} more outputs exist" if len(there) > 1 else " exists"
            raise ConfigError(
                f"{there[0]}{more}: --resume keeps what is there and goes on, --overwrite replaces it"
            )

    def refuse_inputs(self, inputs: Sequence[str], names: Sequence[str] | None) -> None:
        """Raise ConfigError if an output would take the place of an input, or lie in a folder of inputs.

        `names`: of the shots; None: a video's, which are numbers.
        """
        known = None if names is None else {*names}
        out = os.path.realpath(self.path)
        for given in inputs:
            if "://" in given:
                continue
            real = os.path.realpath(given)
            if (real == out and not self.is_file) or self._writes(real, known):
                raise ConfigError(f"--output {self.path} is an input: use another name")
            if os.path.isdir(real) and out.startswith(real + os.sep):
                raise ConfigError(
                    f"--output {self.path} lies in {given}: use a place outside of it"
                )

    def _writes(self, real: str, names: set[str] | None) -> bool:
        """Return whether an output would have this path."""
        if self.is_file:
            return any(os.path.realpath(self.path_of(kind)) == real for kind in self.types)
        stem, ending = os.path.splitext(real)
        folders = (os.path.realpath(os.path.dirname(self.path_of(kind))) for kind in self.types)
        written = (os.path.relpath(stem, folder) for folder in folders)
        return ending == PICTURE and any(
            n.isdigit() if names is None else n in names for n in written
        )
