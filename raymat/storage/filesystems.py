"""The one door to fsspec: every URL is opened here, with the settings of its provider."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem

from raymat.errors import StorageError
from raymat.storage.faults import backend_errors, classify, reason
from raymat.storage.urls import literal_path, redact, refuse_secrets, schemes

_S3_OPTIONS: dict[str, Any] = {
    # One request for a read instead of two: with more, s3fs first asks for the size.
    "max_concurrency": 1,
    # The digests here are stronger than botocore's checksums, which some servers send wrongly for a
    # range, or refuse.
    "config_kwargs": {
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        # Seconds of silence, not of a whole transfer: a large part over a slow link goes on as long as bytes
        # move. With the retries, a storage that hangs blocks a request for 50 s.
        "connect_timeout": 5,
        "read_timeout": 15,
        # Retries of a single request or part; then raymat retries, and says what happened.
        "retries": {"max_attempts": 2},
    },
}
_OPTIONS: dict[str, dict[str, Any]] = {"s3": _S3_OPTIONS, "s3a": _S3_OPTIONS}
_WEB = {"http", "https"}
_TIMED = {"ftp", "ftps", "sftp", "ssh", "smb"}
"""Protocols whose file systems take one limit for connecting and for silence."""
CONNECT_SECONDS, SILENT_SECONDS = 5.0, 15.0
"""What other servers than S3's have to answer and to go on: their packages wait for half a minute, or for ever."""

_EXTRAS = {"gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}


def open_filesystem(url: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return fsspec's file system for `url`, unshared and without cached listings, and the path in it.

    Nothing is read or written yet. `options` go to the file system.

    Raises:
        StorageError: the URL carries credentials, its protocol is unknown, or a package for it is missing.
    """
    refuse_secrets(url)
    options = dict(options or {})
    protocol = urlsplit(url).scheme if "://" in url else "file"
    chosen = {"use_listings_cache": False, "skip_instance_cache": True}
    chosen |= _OPTIONS.get(protocol, {}) | options
    try:
        if protocol in _OPTIONS:
            chosen |= _s3_objects(options)
        chosen = _patience(protocol) | chosen | _behind(url)
        if (literal := literal_path(url)) is not None:  # url_to_fs would read up to the :: alone
            local = fsspec.filesystem("file", **chosen)
            return local, str(local._strip_protocol(literal))
        filesystem, path = fsspec.core.url_to_fs(url, **chosen)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        fix = f"pip install 'raymat[{extra}]'" if extra else reason(error)
        raise StorageError(
            f"cannot open {redact(url)}: a package for {protocol}:// is missing; {fix}"
        ) from error
    except ValueError as error:
        raise StorageError(f"cannot open {redact(url)}: {reason(error)}") from error
    except backend_errors() as error:
        raise classify(error, "open").error("open", redact(url)) from error
    if protocol in _OPTIONS:
        # s3fs repeats each request 5 times on top of botocore's retries: a storage that hangs would block us
        # for minutes. botocore's retries stay, raymat's come on top.
        filesystem.retries = 1
    return filesystem, str(path)


def _behind(url: str) -> dict[str, Any]:
    """Return the settings of the links of a chain behind its first one, by their protocols, as fsspec takes them."""
    found = {
        protocol: _OPTIONS.get(protocol) or _patience(protocol) for protocol in schemes(url)[1:]
    }
    return {protocol: settings for protocol, settings in found.items() if settings}


def _patience(protocol: str) -> dict[str, Any]:
    """Return how long a file system waits for its server; nothing for those that are not known or have limits of their own.

    Seconds of silence, not of a whole transfer.
    """
    if protocol in _WEB:
        from aiohttp import ClientTimeout  # late: it is needed for the web alone

        limit = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS)
        return {"client_kwargs": {"timeout": limit}}
    if protocol == "github":
        return {"timeout": (CONNECT_SECONDS, SILENT_SECONDS)}
    return {"timeout": SILENT_SECONDS} if protocol in _TIMED else {}


def _s3_objects(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what s3fs is given beside plain settings; its packages take a second to load, so they are loaded here only."""
    from raymat.storage.s3 import WatchedSession, new_session

    # A copy: botocore writes into it what one session was set to.
    config = copy.deepcopy(_S3_OPTIONS["config_kwargs"]) | {"http_session_cls": WatchedSession}
    own_session = {} if {"session", "profile"} & options.keys() else {"session": new_session()}
    return {"config_kwargs": config | options.get("config_kwargs", {}), **own_session}


def find_files(filesystem: Any, root: str) -> dict[str, Mapping[str, Any]]:
    """Return each file below a folder by its path, with what the file system tells of it.

    fsspec's own way through folders, which web servers, FTP and SSH have, takes one that cannot be listed for an empty one.

    Raises:
        What `faults.backend_errors` lists, as the backend raised it; FileNotFoundError for a bucket that does not exist,
        not for a folder.
    """
    kind = type(filesystem)
    is_async = isinstance(filesystem, AsyncFileSystem)
    if (
        kind._find is AsyncFileSystem._find
        if is_async
        else kind.find is fsspec.AbstractFileSystem.find
    ):
        try:
            entries = filesystem.ls(root, detail=True)
        except FileNotFoundError:
            return {}
        return dict(_walk(filesystem, root, entries))
    found: dict[str, Mapping[str, Any]] = filesystem.find(root, detail=True)
    return found


def _walk(
    filesystem: Any, folder: str, entries: list[Mapping[str, Any]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for info in entries:
        name = info["name"].rstrip("/")
        last = name.rpartition("/")[2]
        if name == folder.rstrip("/") or last in (".", "..") or _sorts_a_page(filesystem, last):
            continue
        if info["type"] != "directory":
            yield info["name"], info
            continue
        try:
            below = filesystem.ls(info["name"], detail=True)
        except FileNotFoundError:  # removed in between
            continue
        yield from _walk(filesystem, name, below)


def _sorts_a_page(filesystem: Any, name: str) -> bool:
    """Return whether an entry is one of the links by which a web server's listing is sorted."""
    return name.startswith("?") and "http" in filesystem.protocol
