"""Interruption notices of spot machines, from the metadata services of AWS, GCP and Azure.

None is ever acknowledged: that (Azure's StartRequests) would only bring the end forward.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Protocol

from raymat.cluster.spot.metadata_request import (
    Answer,
    MetadataError,
    ask,
    ask_ok,
    excerpt,
    http_time,
)

LINK_LOCAL = "http://169.254.169.254"
"""Where all three clouds answer; as a number, since a name would need a resolver that works."""
TOKEN_SECONDS = 21600
"""The longest life of a token that AWS grants."""
TOKEN_MARGIN_SECONDS = 300
GCP_SECONDS = 30.0
"""From the notice to the end: https://cloud.google.com/compute/docs/instances/preemptible#preemption-process"""


@dataclass(frozen=True)
class Interruption:
    """A notice that this machine will be taken: why, and when in Unix seconds (None if the cloud gives no time)."""

    reason: str
    deadline: float | None = None

    def __str__(self) -> str:
        return f"{self.reason}, {f'at {utc(self.deadline)}' if self.deadline else 'no deadline'}"


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
        raise MetadataError(f"expected action and time, got {excerpt(text)}")
    return Interruption(f"AWS will {action[:40]} this spot instance", _iso_time(when))


def aws_rebalance(text: str) -> Interruption:
    """Parse a rebalance recommendation, which has no deadline: {"noticeTime": "2020-10-27T08:22:00Z"}.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
    Raises MetadataError for anything else.
    """
    if not isinstance(_object(text).get("noticeTime"), str):
        raise MetadataError(f"expected noticeTime, got {excerpt(text)}")
    return Interruption("AWS recommends to leave this spot instance")


def gcp_preempted(text: str, now: float) -> Interruption | None:
    """Parse TRUE, from the moment at which 30 seconds are left, or FALSE before; `now` in Unix seconds.

    https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
    Raises MetadataError for anything else.
    """
    word = text.strip()
    if word not in ("TRUE", "FALSE"):
        raise MetadataError(f"expected TRUE or FALSE, got {excerpt(text)}")
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
        raise MetadataError(f"expected a list of Events, got {excerpt(text)}")
    times = [
        http_time(event.get("NotBefore") or "") or now
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
        raise MetadataError(f"expected a JSON object, got {excerpt(text)}")
    return answer


def _iso_time(text: str) -> float:
    """Return the Unix seconds of an ISO 8601 time in UTC."""
    try:
        # Python 3.10 does not parse a Z.
        when = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        raise MetadataError(f"expected a time, got {excerpt(text)}") from None


def utc(seconds: float) -> str:
    """Format a time in Unix seconds for people: 2026-01-31T08:22:00Z."""
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


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
            token = ask_ok(
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
        return gcp_preempted(ask_ok(url, {"Metadata-Flavor": "Google"}).text, self.clock())


@dataclass
class Azure:
    """Azure's scheduled events."""

    endpoint: str = LINK_LOCAL
    clock: Callable[[], float] = time.time
    _machine: str | None = None

    def poll(self) -> Interruption | None:
        """Return the eviction of this machine."""
        url = f"{self.endpoint}/metadata/scheduledevents?api-version=2020-07-01"
        _, text, ahead = ask_ok(url, {"Metadata": "true"})
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
