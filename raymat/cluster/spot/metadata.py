"""Interruption notices of spot machines, from the metadata services of AWS, GCP and Azure.

None is ever acknowledged: that (Azure's StartRequests) would only bring the end forward.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, NamedTuple, Protocol

from raymat.errors import ClusterError

LINK_LOCAL = "http://169.254.169.254"
"""Where all three clouds answer; as a number, since a name would need a resolver that works."""
ANSWER_SECONDS = 2.0
"""A metadata service answers within milliseconds or not at all."""
ANSWER_BYTES = 1 << 20
TOKEN_SECONDS = 21600
"""The longest life of a token that AWS grants."""
TOKEN_MARGIN_SECONDS = 300
CLOCK_SECONDS = 2.0
"""Difference of two clocks that the one-second resolution of an answer's Date, and the answer's way, may explain."""
GCP_SECONDS = 30.0
"""From the notice to the end: https://cloud.google.com/compute/docs/instances/preemptible#preemption-process"""


@dataclass(frozen=True)
class Interruption:
    """A notice that this machine will be taken: why, and when in Unix seconds (None if the cloud gives no time)."""

    reason: str
    deadline: float | None = None

    def __str__(self) -> str:
        return f"{self.reason}, {f'at {utc(self.deadline)}' if self.deadline else 'no deadline'}"


class MetadataError(ClusterError):
    """The metadata service did not answer, or not as its documents say."""


class Cloud(Protocol):
    """A cloud that can be asked whether it takes this machine."""

    def poll(self) -> Interruption | None:
        """Return what is announced now. Raises MetadataError; asking again may help."""


# The answers of the clouds.


def aws_action(text: str) -> Interruption:
    """Parse a spot interruption notice: {"action": "terminate", "time": "2017-09-18T08:22:00Z"}.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    Raises MetadataError for anything else.
    """
    answer = _object(text)
    action, when = answer.get("action"), answer.get("time")
    if not isinstance(action, str) or not isinstance(when, str):
        raise MetadataError(f"expected action and time, got {_excerpt(text)}")
    return Interruption(f"AWS will {action[:40]} this spot instance", _iso_time(when))


def aws_rebalance(text: str) -> Interruption:
    """Parse a rebalance recommendation, which has no deadline: {"noticeTime": "2020-10-27T08:22:00Z"}.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
    Raises MetadataError for anything else.
    """
    if not isinstance(_object(text).get("noticeTime"), str):
        raise MetadataError(f"expected noticeTime, got {_excerpt(text)}")
    return Interruption("AWS recommends to leave this spot instance")


def gcp_preempted(text: str, now: float) -> Interruption | None:
    """Parse TRUE, from the moment at which 30 seconds are left, or FALSE before; `now` in Unix seconds.

    https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
    Raises MetadataError for anything else.
    """
    word = text.strip()
    if word not in ("TRUE", "FALSE"):
        raise MetadataError(f"expected TRUE or FALSE, got {_excerpt(text)}")
    return Interruption("GCP preempts this instance", now + GCP_SECONDS) if word == "TRUE" else None


def azure_preemption(text: str, machine: str, now: float) -> Interruption | None:
    """Find the earliest scheduled event that takes this machine; `now` in Unix seconds.

    All machines of a scale set hear of each other's events, so only those that name `machine` count (all of
    them if it is "", a name that is not known). NotBefore is empty once an event has started.
    https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
    Raises MetadataError for what is no list of events.
    """
    events = _object(text).get("Events")
    if not isinstance(events, list):
        raise MetadataError(f"expected a list of Events, got {_excerpt(text)}")
    times = [
        _http_time(event.get("NotBefore") or "") or now
        for event in events
        if isinstance(event, dict)
        and event.get("EventType") == "Preempt"
        and _names(event, machine)
    ]
    return Interruption("Azure evicts this spot machine", min(times)) if times else None


def _names(event: Mapping[str, Any], machine: str) -> bool:
    resources = event.get("Resources")
    if not machine or not isinstance(resources, list):
        return True
    return machine.lower() in (str(name).lower() for name in resources)


def _object(text: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise MetadataError(f"expected a JSON object, got {_excerpt(text)}")
    return answer


def _iso_time(text: str) -> float:
    """Return the Unix seconds of an ISO 8601 time in UTC."""
    try:
        # Python 3.10 does not parse a Z.
        when = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        raise MetadataError(f"expected a time, got {_excerpt(text)}") from None


def _http_time(text: object) -> float | None:
    """Return the Unix seconds of an RFC 1123 time like "Mon, 19 Sep 2016 18:29:47 GMT"; None if it is empty."""
    if text == "":
        return None
    try:
        return email.utils.parsedate_to_datetime(str(text)).timestamp()
    except (ValueError, TypeError, OverflowError):
        raise MetadataError(f"expected a time, got {_excerpt(str(text))}") from None


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def utc(seconds: float) -> str:
    """Format a time in Unix seconds for people: 2026-01-31T08:22:00Z."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


# The questions to them.


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


def _ask_ok(url: str, headers: Mapping[str, str], method: str = "GET") -> Answer:
    answer = ask(url, headers, method)
    if answer.status != 200:
        raise MetadataError(f"{url}: HTTP {answer.status}")
    return answer


def _ahead(date: str | None, now: float) -> float:
    """Return by how many seconds `now` is ahead of an answer's `Date`; 0 for no more than its resolution explains."""
    try:
        ahead = now - (_http_time(date or "") or now)
    except MetadataError:
        return 0.0
    return ahead if abs(ahead) > CLOCK_SECONDS else 0.0


def _by_own_clock(notice: Interruption | None, ahead: float) -> Interruption | None:
    """Return the notice with its deadline as this machine's clock will show it: Ray compares it with that clock."""
    if notice is None or notice.deadline is None:
        return notice
    return replace(notice, deadline=notice.deadline + ahead)


@dataclass
class Aws:
    """EC2 by IMDSv2, where each question carries a token that expires."""

    endpoint: str = LINK_LOCAL
    rebalance: bool = False
    """Whether a rebalance recommendation is a notice."""
    clock: Callable[[], float] = time.monotonic
    _token: str = field(default="", repr=False)
    _renew: float = 0.0

    def poll(self) -> Interruption | None:
        """Return the notice, or else the recommendation if it counts as one."""
        answer = self._get("spot/instance-action")
        if answer is not None:
            return _by_own_clock(aws_action(answer.text), answer.ahead)
        answer = self._get("events/recommendations/rebalance") if self.rebalance else None
        return None if answer is None else aws_rebalance(answer.text)

    def _get(self, path: str) -> Answer | None:
        """Return what the service has at a path, None if it has nothing there."""
        url = f"{self.endpoint}/latest/meta-data/{path}"
        answer = ask(url, self._headers())
        if answer.status == 401:  # the token expired, for instance while the machine was stopped
            self._token = ""
            answer = ask(url, self._headers())
        if answer.status not in (200, 404):
            raise MetadataError(f"{url}: HTTP {answer.status}")
        return answer if answer.status == 200 else None

    def _headers(self) -> dict[str, str]:
        if not self._token or self.clock() >= self._renew:
            self._token = ""
            url = f"{self.endpoint}/latest/api/token"
            asked = self.clock()
            token = _ask_ok(
                url, {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}, "PUT"
            ).text
            if not token or not token.isascii() or not token.isprintable():
                raise MetadataError(f"{url}: what came is no token")
            self._token, self._renew = token, asked + TOKEN_SECONDS - TOKEN_MARGIN_SECONDS
        return {"X-aws-ec2-metadata-token": self._token}


@dataclass
class Gcp:
    """Compute Engine."""

    endpoint: str = LINK_LOCAL
    clock: Callable[[], float] = time.time

    def poll(self) -> Interruption | None:
        """Return the preemption, with a deadline that counts from now."""
        url = f"{self.endpoint}/computeMetadata/v1/instance/preempted"
        return gcp_preempted(_ask_ok(url, {"Metadata-Flavor": "Google"}).text, self.clock())


@dataclass
class Azure:
    """Azure's scheduled events."""

    endpoint: str = LINK_LOCAL
    clock: Callable[[], float] = time.time
    _machine: str | None = None

    def poll(self) -> Interruption | None:
        """Return the eviction of this machine."""
        url = f"{self.endpoint}/metadata/scheduledevents?api-version=2020-07-01"
        _, text, ahead = _ask_ok(url, {"Metadata": "true"})
        now = self.clock() - ahead
        if self._machine is None and azure_preemption(text, "", now):
            self._machine = self._name()
        return _by_own_clock(azure_preemption(text, self._machine or "", now), ahead)

    def _name(self) -> str:
        """Return this machine's name, "" if the service does not tell it."""
        url = f"{self.endpoint}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        status, text, _ = ask(url, {"Metadata": "true"})
        if status >= 500 or status == 429:
            raise MetadataError(f"{url}: HTTP {status}")
        return text.strip() if status == 200 else ""


@dataclass
class Auto:
    """The first cloud that answers as its documents say: this machine runs there."""

    clouds: Sequence[Cloud]
    _found: Cloud | None = None

    def poll(self) -> Interruption | None:
        """Ask the cloud that was found. Raises MetadataError while none is, and then what that one raises."""
        if self._found:
            return self._found.poll()
        for cloud in self.clouds:
            try:
                seen = cloud.poll()
            except MetadataError as error:
                last = error
            else:
                self._found = cloud
                return seen
        raise MetadataError(f"no cloud's metadata service answers (the last asked, {last.line})")
