"""Questions to a cloud's metadata service: one short request, never through a proxy, never redirected."""

from __future__ import annotations

import email.utils
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

from raymat.errors import ClusterError

ANSWER_SECONDS = 2.0
"""A metadata service answers within milliseconds or not at all."""
ANSWER_BYTES = 1 << 20
CLOCK_SECONDS = 2.0
"""Difference of two clocks that the one-second resolution of an answer's Date, and the answer's way, may explain."""


class MetadataError(ClusterError):
    """The metadata service did not answer, or not as its documents say."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: a metadata service sends none, and what does must get no token."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


# Never through a proxy, whatever the environment names: it would answer for its own machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


class Answer(NamedTuple):
    """An answer: its status, its text, and by how many seconds this machine's clock is ahead of the service's."""

    status: int
    text: str
    ahead: float = 0.0


def ask(url: str, headers: Mapping[str, str], method: str = "GET") -> Answer:
    """Return the answer, whatever its status. Raises MetadataError if there is none."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with _OPENER.open(request, timeout=ANSWER_SECONDS) as response:
            ahead = _ahead(response.headers.get("Date"), time.time())
            return Answer(response.status, response.read(ANSWER_BYTES).decode(), ahead)
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, "")
    except urllib.error.URLError as error:
        raise MetadataError(f"{url}: {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MetadataError(f"{url}: {type(error).__name__}: {error}") from None


def ask_ok(url: str, headers: Mapping[str, str], method: str = "GET") -> Answer:
    """Return the answer. Raises MetadataError unless its status is 200."""
    answer = ask(url, headers, method)
    if answer.status != 200:
        raise MetadataError(f"{url}: HTTP {answer.status}")
    return answer


def _ahead(date: str | None, now: float) -> float:
    """Return by how many seconds `now` is ahead of an answer's `Date`; 0 for no more than its resolution explains."""
    try:
        ahead = now - (http_time(date or "") or now)
    except MetadataError:
        return 0.0
    return ahead if abs(ahead) > CLOCK_SECONDS else 0.0


def http_time(text: object) -> float | None:
    """Return the Unix seconds of an RFC 1123 time like "Mon, 19 Sep 2016 18:29:47 GMT"; None if it is empty."""
    if text == "":
        return None
    try:
        return email.utils.parsedate_to_datetime(str(text)).timestamp()
    except (ValueError, TypeError, OverflowError):
        raise MetadataError(f"expected a time, got {excerpt(str(text))}") from None


def excerpt(text: str) -> str:
    """Return the beginning of a text for a message."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")
