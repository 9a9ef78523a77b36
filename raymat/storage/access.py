"""Access to a storage: its file system, opened anew when it refuses the keys that it was opened with.

Keys are renewed while a run goes on: by hand, in the credentials file, in the cache of a single sign-on, by a machine's
role. Providers' packages read them once. So a refusal leads to a new file system, which reads them again; the old one
stays with the calls that still use it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from raymat.storage.faults import SettingsError, classify, unasked_fault
from raymat.storage.filesystems import open_filesystem
from raymat.storage.retry import RetryPolicy
from raymat.storage.urls import takes_keys

T = TypeVar("T")

RENEW_SECONDS = 5.0
"""A file system younger than this was opened with the newest keys there are: it is kept."""
STRANGER_SECONDS = 3.0
"""A storage that has never answered is asked no longer: its name or the way to it is wrong rather than disturbed."""

_SILENCE = ("unreachable", "stranger")
"""Kinds of faults of what may be no storage at all."""


class Access:
    """File system of a storage, and what the storage has allowed so far. Shared by threads."""

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, allowed: Iterable[str] = ()
    ) -> None:
        """Open the storage at `url`; nothing is read or written yet.

        `options` go to fsspec's file system. `allowed`: the actions that the storage is known to allow.

        Raises:
            StorageError: as `open_filesystem`.
        """
        self.options = dict(options or {})
        self.url = url
        self.filesystem, self.path = open_filesystem(url, self.options)
        self.allowed = set(allowed)
        """What has succeeded here, or where this access came from."""
        self.may_delete = True
        """False once it is known that this account may write here but not delete."""
        self._opened = time.monotonic()
        self._lock = threading.Lock()

    @property
    def is_local(self) -> bool:
        """Whether the storage is a folder of this machine."""
        return isinstance(self.filesystem, LocalFileSystem)

    def run(
        self,
        action: str,
        call: Callable[[], T],
        retry: RetryPolicy,
        *,
        may_pass: Callable[[BaseException], bool] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> T:
        """Return the result of `call()`, which uses `filesystem`, called again while its fault may pass.

        A refusal is called again with new keys, if there may be any, and a storage that has never answered is given up
        after `STRANGER_SECONDS`. Beyond that `may_pass` judges; by default a refusal may pass if the same `action` (as in
        "read") was allowed before: keys are being renewed.

        Raises:
            The last fault, as the backend raised it.
        """
        first = time.monotonic()
        began, anew = first, 0

        def timed() -> T:
            nonlocal began
            began = time.monotonic()
            try:
                return call()
            except FileNotFoundError as error:
                raise self._missing(error) from error.__cause__

        def may_retry(error: BaseException) -> bool:
            nonlocal anew
            fault = classify(error, action)
            # A folder of this machine takes no keys that could have been renewed.
            refused = fault.kind in ("denied", "credentials") and not self.is_local
            if refused and self._renewed_since(began):
                anew += 1  # what was never allowed is not asked for ever, however long a file system takes to open
                if anew == 1:
                    return True
            if not self.allowed and fault.kind in _SILENCE and _has_lasted(first):
                return False
            if may_pass is not None:
                return may_pass(error)
            was_allowed = action in self.allowed and (refused or fault.kind == "settings")
            return fault.transient or was_allowed

        result = retry.run(timed, may_retry, sleep=sleep, uniform=random.Random().uniform)
        self.allowed.add(action)
        return result

    def _missing(self, error: FileNotFoundError) -> OSError:
        """Return what is missing: the file that was asked for, one of this machine that should hold keys, or an answer."""
        if (unasked := unasked_fault(error)) is not None:
            return unasked
        own = error.filename if takes_keys(self.url) else None
        if isinstance(own, str) and os.path.isabs(own):
            return SettingsError(f"there is no file {own}")
        return error

    def _renewed_since(self, began: float) -> bool:
        """Open a new file system, unless this one is new; return whether the call that `began` then used an older one."""
        with self._lock:
            if time.monotonic() - self._opened >= RENEW_SECONDS:
                self.filesystem, _ = open_filesystem(self.url, self.options)
                self._opened = time.monotonic()
            return self._opened > began


def _has_lasted(since: float) -> bool:
    return time.monotonic() - since >= STRANGER_SECONDS
