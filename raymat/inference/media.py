"""Opens what sources and backgrounds name: a picture, a folder of pictures, or a video."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

from raymat.data.dataset.file_names import ANY_NAMES
from raymat.errors import ConfigError, DataError
from raymat.storage.urls import redact

Medium = Literal["picture", "folder", "video"]

VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".ts"),
    *(".wmv", ".flv", ".3gp", ".mxf", ".ogv", ".y4m"),
)
"""Endings of files that are opened as videos."""


def medium_of(flag: str, url: str) -> Medium:
    """Tell from a name, and of what is on this machine by looking, what a URL means.

    Raises:
        ConfigError: it is a file of a kind that is not read. DataError: it is not there.
    """
    local = "://" not in url
    if local and not os.path.exists(url):
        raise DataError(f"{flag} {url}: no such file or folder")
    ending = "" if local and os.path.isdir(url) else os.path.splitext(url.rstrip("/"))[1].lower()
    if ending in ANY_NAMES.suffixes:
        return "picture"
    if ending in VIDEO_SUFFIXES:
        if not local:
            raise ConfigError(
                f"{flag} {redact(url)}: videos are read from this machine: copy it here"
            )
        if importlib.util.find_spec("av") is None:
            raise ConfigError(f"{flag} {url}: videos need PyAV: pip install 'raymat[video]'")
        return "video"
    if local and not os.path.isdir(url):
        videos = ", ".join(suffix[1:] for suffix in VIDEO_SUFFIXES)
        raise ConfigError(
            f"{flag} {url}: expected a picture ({ANY_NAMES.kinds}), a folder of pictures or a video ({videos})"
        )
    return "folder"
