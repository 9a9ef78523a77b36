"""The one door to fsspec: every URL is opened here, with the settings of its provider."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import fsspec

from raymat.errors import StorageError
from raymat.storage.faults import backend_errors, classify, reason
from raymat.storage.urls import redact, refuse_secrets

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


def _s3_objects(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what s3fs is given beside plain settings; its packages take a second to load, so they are loaded here only."""
    from raymat.storage.s3 import WatchedSession, new_session

    # A copy: botocore writes into it what one session was set to.
    config = copy.deepcopy(_S3_OPTIONS["config_kwargs"]) | {"http_session_cls": WatchedSession}
    own_session = {} if {"session", "profile"} & options.keys() else {"session": new_session()}
    return {"config_kwargs": config | options.get("config_kwargs", {}), **own_session}
