"""Writes pictures as PNG, each whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import TracebackType

import cv2
import numpy as np

from raymat.errors import StorageError
from raymat.inference.pipeline import Stopwatch
from raymat.inference.rendering import OutputType, Picture
from raymat.inference.shots import Shot
from raymat.storage.output_files import write_file

FAST = (cv2.IMWRITE_PNG_COMPRESSION, 3)


class PictureWriter:
    """Writer of a PNG for each shot and type, at `path_of(type, name of the shot)`."""

    def __init__(self, path_of: Callable[[OutputType, str], str], watch: Stopwatch) -> None:
        self._path_of = path_of
        self._watch = watch
        self._folders: set[str] = set()

    def __enter__(self) -> PictureWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Do nothing: each picture is in place once it is written, and whole."""

    def write(self, shot: Shot, pictures: Mapping[OutputType, Picture]) -> None:
        """Write the pictures of a shot; folders are made. Raises StorageError."""
        with self._watch.timing("encode"):
            for kind, picture in pictures.items():
                path = self._path_of(kind, shot.name)
                folder = os.path.dirname(path)
                tidy = folder not in self._folders
                self._folders.add(folder)
                write_file(path, [encode_png(picture, path)], tidy=tidy)


def encode_png(picture: Picture, path: str) -> bytes:
    """Return a picture as PNG. Raises StorageError."""
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}.get(channels)
    stored = picture if order is None else cv2.cvtColor(picture, order)
    done, encoded = cv2.imencode(".png", stored, FAST)
    if not done:
        raise StorageError(f"cannot write {path}: OpenCV cannot encode it as PNG")
    return np.asarray(encoded, np.uint8).tobytes()
