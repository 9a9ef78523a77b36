"""Writes the files that commands produce: reports to any fsspec URL, networks to a path of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from raymat.errors import ConfigError, StorageError
from raymat.storage.access import Access
from raymat.storage.backends import LocalBackend, draft_of, remove_dead_temporaries
from raymat.storage.digest import Buffer
from raymat.storage.faults import backend_errors, classify
from raymat.storage.fsspec_backend import FsspecBackend
from raymat.storage.retry import RetryPolicy
from raymat.storage.urls import redact


def check_output(flag: str, url: str | None, ending: str = "") -> None:
    """Check before the work whether the file can be written, without writing; None always passes.

    Raises:
        ConfigError: `url` does not end in `ending`, its protocol is unknown, or this machine takes no file there.
    """
    if url is None:
        return
    if not url.endswith(ending):
        raise ConfigError(f"{flag} must end in {ending}, got {redact(url)!r}")
    access = _open(flag, url)
    if access.is_local and (os.path.isdir(access.path) or url.endswith("/")):
        raise ConfigError(f"{flag} {redact(url)}: expected a file's name, got a folder")
    if access.is_local:
        _check_place(access.path, redact(url))


def write_output(flag: str, url: str, content: bytes) -> None:
    """Write the file, whole or not at all, replacing any file there; makes folders of this machine.

    Raises:
        ConfigError: as `check_output`. StorageError: it cannot be written.
    """
    access = _open(flag, url)
    if access.is_local:
        write_file(access.path, [content])
        return
    backend = FsspecBackend(access)
    try:
        access.run("write", lambda: backend.write(access.path, [content]), RetryPolicy())
    except backend_errors() as error:
        raise classify(error, "write").error("write", redact(url)) from error


def check_new_files(path: str, files: Mapping[str, str], force: bool) -> None:
    """Check before the work whether files of this machine can be written; `force`: they may exist.

    `files`: path of each file to its name in messages; `path` is the first of those names.

    Raises:
        ConfigError: there is no such folder, or something is there already.
    """
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise ConfigError(f"cannot write {path}: there is no folder {folder}")
    for file, named in files.items():
        _check_place(file, named)
        if os.path.exists(file) and not force:
            raise ConfigError(f"{named} exists: use another name, or --force to replace it")


def _check_place(path: str, named: str) -> None:
    """Check that a file of this machine can be made or replaced: a new one is renamed to it, which would take a device's place."""
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        raise ConfigError(f"cannot write {named}: something that is no file is there")
    folder = os.path.dirname(target)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise ConfigError(f"cannot write {named}: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"cannot write {named}: this account may not write in {folder}")


def write_file(path: str, chunks: Sequence[Buffer], tidy: bool = True) -> None:
    """Write a file of this machine, whole or not at all, following links. Raises StorageError.

    `tidy`: remove what killed writers left beside it; one of thousands of files in a folder need not look again.
    """
    target = os.path.realpath(path)
    try:
        if tidy:
            remove_dead_temporaries(os.path.dirname(target))
        RetryPolicy().run(
            lambda: LocalBackend().write(target, chunks),
            lambda error: classify(error, "write").transient,
        )
    except OSError as error:
        raise classify(error, "write").error("write", target) from error


@contextmanager
def drafted(path: str) -> Iterator[str]:
    """Yield the name of a file for a library to write, which then becomes `path`, durable; removed where the block fails.

    Links are followed. Raises StorageError, also in place of an OSError of the block.
    """
    target = os.path.realpath(path)
    try:
        remove_dead_temporaries(os.path.dirname(target))
        with draft_of(target) as draft:
            yield draft
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())
    except OSError as error:
        raise classify(error, "write").error("write", target) from error


def _open(flag: str, url: str) -> Access:
    try:
        return Access(url)
    except StorageError as error:
        raise ConfigError(f"{flag}: {error.line}") from error
