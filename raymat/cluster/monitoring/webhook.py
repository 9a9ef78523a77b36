"""Webhooks: news as JSON, posted to URLs by threads that nothing waits for."""

from __future__ import annotations

import json
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raymat.errors import ConfigError

TIMEOUT_SECONDS = 3.0
"""For a server to take the news."""
PAUSES = (1.0, 5.0)
"""Seconds before the second and the third try; there is no fourth."""
CLOSE_SECONDS = 5.0
"""How long the end of a run waits at most for news to be taken."""
MOST_WAITING = 50
"""News that wait for a server; more are dropped, and that is said."""
AGAIN = {408, 425, 429}
"""Refusals by the client's fault that may pass."""


def read_urls(environment: Mapping[str, str], file: str | None) -> list[str]:
    """Return the URLs that RAYMAT_NOTIFY holds, separated by white space, and those of `file`, one a line; each once.

    Raises:
        ConfigError: the file cannot be read, or something there is no http URL. It is not shown: it may be a secret.
    """
    places = [("RAYMAT_NOTIFY", environment.get("RAYMAT_NOTIFY", ""))]
    if file is not None:
        try:
            places.append((f"--notify-file {file}", Path(file).read_text(encoding="utf-8")))
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise ConfigError(f"--notify-file {file}: cannot be read: {why}") from None
    found: dict[str, None] = {}
    for place, text in places:
        for number, url in enumerate(text.split(), start=1):
            if not _is_web_url(url):
                raise ConfigError(f"{place}: entry {number} is no http:// or https:// URL")
            found[url] = None
    return list(found)


def _is_web_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()


class Webhooks:
    """Posts news to each of some URLs, in a thread for each: one that hangs keeps no other waiting."""

    def __init__(
        self,
        urls: Sequence[str],
        say: Callable[[str], None],
        pauses: Sequence[float] = PAUSES,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        """`say`: takes a line for each piece of news that a server did not take. `pauses`, `timeout`: seconds."""
        self._hooks = [_Webhook(url, say, pauses, timeout) for url in urls]

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def send(self, news: Mapping[str, Any]) -> None:
        """Post `news`, which JSON can hold and which has a `kind`; returns at once."""
        body = json.dumps(news).encode()
        for hook in self._hooks:
            hook.send(str(news["kind"]), body)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Wait until all news is taken or given up, for all servers together `seconds` at most."""
        until = time.monotonic() + seconds
        for hook in self._hooks:
            hook.hurry()
        for hook in self._hooks:
            hook.close(until)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the news to another place, or ask there without telling it."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Webhook:
    def __init__(
        self, url: str, say: Callable[[str], None], pauses: Sequence[float], timeout: float
    ) -> None:
        self._url, self._say, self._pauses, self._timeout = url, say, pauses, timeout
        self._host = urlsplit(url).hostname
        """All that may be shown of the URL."""
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._news: queue.Queue[tuple[str, bytes] | None] = queue.Queue()
        self._hurry = threading.Event()
        self._given_up = threading.Event()
        # A daemon: a process that ends must not wait for a server.
        self._thread = threading.Thread(target=self._work, name="raymat-webhook", daemon=True)
        self._thread.start()

    def send(self, kind: str, body: bytes) -> None:
        if self._news.qsize() < MOST_WAITING:
            self._news.put((kind, body))
        else:
            self._complain(kind, f"{MOST_WAITING} others wait")

    def hurry(self) -> None:
        self._news.put(None)
        self._hurry.set()

    def close(self, until: float) -> None:
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            # Else it would go through all that waits, minutes after the run's end.
            self._given_up.set()
            self._complain("all", "it does not answer in time")

    def _work(self) -> None:
        while (waiting := self._news.get()) is not None:
            kind, body = waiting
            failure = self._post(body)
            for pause in self._pauses:
                if failure is None or not failure.may_pass or self._given_up.is_set():
                    break
                # At the end of the run it is tried again at once, and as often.
                self._hurry.wait(pause)
                failure = self._post(body)
            if self._given_up.is_set():
                return
            if failure is not None:
                self._complain(kind, failure.why)

    def _post(self, body: bytes) -> _Failure | None:
        headers = {"Content-Type": "application/json", "User-Agent": "raymat"}
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout):
                return None
        except urllib.error.HTTPError as error:
            error.close()
            return _Failure(f"HTTP {error.code}", error.code >= 500 or error.code in AGAIN)
        except (OSError, HTTPException, ValueError) as error:
            return _Failure(_reason(error))

    def _complain(self, kind: str, why: str) -> None:
        self._say(f"notify: {self._host} was not told of {kind}: {why}")


class _Failure:
    def __init__(self, why: str, may_pass: bool = True) -> None:
        self.why, self.may_pass = why, may_pass


def _reason(error: BaseException) -> str:
    """Return why a server did not answer, in words that hold nothing of the URL."""
    cause = getattr(error, "reason", None)
    found = cause if isinstance(cause, OSError) else error
    if isinstance(found, TimeoutError):
        return "no answer in time"
    return getattr(found, "strerror", None) or type(found).__name__
