"""`raymat spot-watch`: on a machine that its cloud may take back, tells Ray when the cloud says so.

Each cloud announces the end of a spot machine to that machine alone, through its metadata service. This asks that service
every few seconds and drains this very node in Ray, with the cloud's deadline, which every run on it hears. It needs
neither root nor a key, outlives a silent metadata service and a head that restarts, and sends each notice once.

It never answers the cloud: an acknowledgement (Azure's StartRequests) would only bring the end forward.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Annotated, Any, Literal, NoReturn, Protocol
from urllib.parse import urlsplit

import tyro

from raymat.errors import ClusterError, ConfigError
from raymat.tools.console import parse

LINK_LOCAL = "http://169.254.169.254"
"""Where all three clouds answer; by number, since a name would need a resolver that works."""
ANSWER_SECONDS = 2.0
"""A metadata service answers within milliseconds or not at all."""
ANSWER_BYTES = 1 << 20
TOKEN_SECONDS = 21600
"""The longest that AWS grants."""
TOKEN_MARGIN_SECONDS = 300
GCP_SECONDS = 30.0
"""From the notice to the end: https://cloud.google.com/compute/docs/instances/preemptible#preemption-process"""
DRAIN_SECONDS = 10.0
"""For one attempt, with the start of its process (about a second) and a head that is slow to answer."""
PREEMPTION = 2
"""`DRAIN_NODE_REASON_PREEMPTION` in Ray's autoscaler.proto: the one kind of drain that Ray never refuses a busy node."""


@dataclass(frozen=True)
class Interruption:
    """A notice that this machine will be taken: why, and when in Unix seconds (None: the cloud gives no time)."""

    reason: str
    deadline: float | None = None

    def __str__(self) -> str:
        return f"{self.reason}, {f'at {_utc(self.deadline)}' if self.deadline else 'no deadline'}"


class MetadataError(ClusterError):
    """The metadata service did not answer, or not what its documents say."""


class Cloud(Protocol):
    """A cloud's word on the end of this machine."""

    def poll(self) -> Interruption | None:
        """What is announced now. Raises MetadataError; asking again may help."""


# What the clouds answer.


def aws_action(text: str) -> Interruption:
    """A spot interruption notice: {"action": "terminate", "time": "2017-09-18T08:22:00Z"}.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    Raises MetadataError for anything else.
    """
    answer = _object(text)
    action, when = answer.get("action"), answer.get("time")
    if not isinstance(action, str) or not isinstance(when, str):
        raise MetadataError(f"expected action and time, got {_excerpt(text)}")
    return Interruption(f"AWS will {action[:40]} this spot instance", _iso_time(when))


def aws_rebalance(text: str) -> Interruption:
    """A rebalance recommendation: {"noticeTime": "2020-10-27T08:22:00Z"}, when it was given. No deadline.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
    Raises MetadataError for anything else.
    """
    if not isinstance(_object(text).get("noticeTime"), str):
        raise MetadataError(f"expected noticeTime, got {_excerpt(text)}")
    return Interruption("AWS recommends to leave this spot instance")


def gcp_preempted(text: str, now: float) -> Interruption | None:
    """TRUE from the moment at which 30 seconds are left, FALSE before; `now` in Unix seconds.

    https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
    Raises MetadataError for anything else.
    """
    word = text.strip()
    if word not in ("TRUE", "FALSE"):
        raise MetadataError(f"expected TRUE or FALSE, got {_excerpt(text)}")
    return Interruption("GCP preempts this instance", now + GCP_SECONDS) if word == "TRUE" else None


def azure_preemption(text: str, machine: str, now: float) -> Interruption | None:
    """The earliest scheduled event that takes this machine; `now` in Unix seconds.

    All machines of a scale set hear of each other's events, so only those that name `machine` count ("" if its name is
    not known: all do). NotBefore is empty once an event has started.
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
    """Unix seconds of an ISO 8601 time in UTC."""
    try:
        # Python 3.10 knows no Z.
        when = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        raise MetadataError(f"expected a time, got {_excerpt(text)}") from None


def _http_time(text: object) -> float | None:
    """Unix seconds of an RFC 1123 time as in "Mon, 19 Sep 2016 18:29:47 GMT"; None if it is empty."""
    if text == "":
        return None
    try:
        return email.utils.parsedate_to_datetime(str(text)).timestamp()
    except (ValueError, TypeError, OverflowError):
        raise MetadataError(f"expected a time, got {_excerpt(str(text))}") from None


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _utc(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


# How they are asked.


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A metadata service redirects nobody; what does is something else, and gets no token."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


# Never through a proxy, whatever the environment names: it would answer for its own machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def ask(url: str, headers: Mapping[str, str], method: str = "GET") -> tuple[int, str]:
    """The status and text of an answer, whatever the status. Raises MetadataError if there is none."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)
    try:
        with _OPENER.open(request, timeout=ANSWER_SECONDS) as response:
            return response.status, response.read(ANSWER_BYTES).decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except urllib.error.URLError as error:
        raise MetadataError(f"{url}: {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MetadataError(f"{url}: {type(error).__name__}: {error}") from None


def _ask_ok(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    status, text = ask(url, headers, method)
    if status != 200:
        raise MetadataError(f"{url}: HTTP {status}")
    return text


@dataclass
class Aws:
    """EC2, by IMDSv2: each question carries a token, which expires."""

    endpoint: str = LINK_LOCAL
    rebalance: bool = False
    """Whether a rebalance recommendation is a notice."""
    clock: Callable[[], float] = time.monotonic
    _token: str = field(default="", repr=False)
    _renew: float = 0.0

    def poll(self) -> Interruption | None:
        """The notice, or else the recommendation if it counts."""
        text = self._get("spot/instance-action")
        if text is not None:
            return aws_action(text)
        text = self._get("events/recommendations/rebalance") if self.rebalance else None
        return None if text is None else aws_rebalance(text)

    def _get(self, path: str) -> str | None:
        """What the service has at a path, None if it has nothing there."""
        url = f"{self.endpoint}/latest/meta-data/{path}"
        status, text = ask(url, self._headers())
        if status == 401:  # the token is not known any more, for instance after a stop and start
            self._token = ""
            status, text = ask(url, self._headers())
        if status not in (200, 404):
            raise MetadataError(f"{url}: HTTP {status}")
        return text if status == 200 else None

    def _headers(self) -> dict[str, str]:
        if not self._token or self.clock() >= self._renew:
            self._token = ""
            url = f"{self.endpoint}/latest/api/token"
            asked = self.clock()
            token = _ask_ok(
                url, {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}, "PUT"
            )
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
        """The preemption, with a deadline that counts from now."""
        url = f"{self.endpoint}/computeMetadata/v1/instance/preempted"
        return gcp_preempted(_ask_ok(url, {"Metadata-Flavor": "Google"}), self.clock())


@dataclass
class Azure:
    """Azure's scheduled events."""

    endpoint: str = LINK_LOCAL
    clock: Callable[[], float] = time.time
    _machine: str | None = None

    def poll(self) -> Interruption | None:
        """The eviction of this machine."""
        url = f"{self.endpoint}/metadata/scheduledevents?api-version=2020-07-01"
        text = _ask_ok(url, {"Metadata": "true"})
        if self._machine is None and azure_preemption(text, "", self.clock()):
            self._machine = self._name()
        return azure_preemption(text, self._machine or "", self.clock())

    def _name(self) -> str:
        """This machine's name, "" where the service does not tell it."""
        url = f"{self.endpoint}/metadata/instance/compute/name?api-version=2021-02-01&format=text"
        status, text = ask(url, {"Metadata": "true"})
        if status >= 500 or status == 429:
            raise MetadataError(f"{url}: HTTP {status}")
        return text.strip() if status == 200 else ""


@dataclass
class Auto:
    """Whichever cloud answers first as its documents say: this machine is there."""

    clouds: Sequence[Cloud]
    _found: Cloud | None = None

    def poll(self) -> Interruption | None:
        """What the found one says. Raises MetadataError while none is found, and then what that one raises."""
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


# What follows from a notice.

Drain = Callable[[Interruption], str]
"""Has Ray drain this node; returns the node's id in hex. Raises ClusterError if it was not accepted."""


def says_more(new: Interruption, old: Interruption | None) -> bool:
    """Whether Ray must hear `new` after `old`: the first one, and one that leaves less time.

    A recommendation has no deadline, and a notice with one may follow. Those of GCP count from when they are heard, so
    that each is a little later than the one before.
    """
    if old is None:
        return True
    return (new.deadline or math.inf) < (old.deadline or math.inf) - 1


class Watch:
    """Asks a cloud, drains once for each notice, and tells of every change."""

    def __init__(
        self,
        cloud: Cloud,
        drain: Drain,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`say` is given one line for each change; `clock` in Unix seconds."""
        self._cloud, self._drain, self._say, self._clock = cloud, drain, say, clock
        self._answers: bool | None = None
        self._notice: Interruption | None = None
        self._settled = self._refused = self._withdrawn = False

    def step(self) -> None:
        """Ask once; drain if there is a notice that Ray has not accepted yet, even if the cloud is silent now."""
        try:
            seen = self._cloud.poll()
        except MetadataError as error:
            self._note_answer(False, f"no answer, asking on: {error.line}")
        else:
            self._note_answer(True, "the metadata service answers")
            self._hear(seen)
        if self._notice is not None and not self._settled:
            self._try(self._notice)

    def _note_answer(self, answers: bool, line: str) -> None:
        if answers != self._answers:
            self._answers = answers
            self._say(line)

    def _hear(self, seen: Interruption | None) -> None:
        if seen is None:
            if self._notice is not None and not self._withdrawn:
                self._withdrawn = True
                self._say("the notice was withdrawn" + " (Ray drains on)" * self._settled)
                # What Ray was told stays known, so that the same again is not told twice.
                self._notice = self._notice if self._settled else None
            return
        self._withdrawn = False
        if says_more(seen, self._notice):
            self._notice, self._settled, self._refused = seen, False, False
            self._say(f"notice: {seen}")

    def _try(self, notice: Interruption) -> None:
        try:
            node = self._drain(notice)
        except ClusterError as error:
            if notice.deadline is not None and self._clock() >= notice.deadline:
                self._settled = True
                self._say(f"Ray accepted no drain before the deadline: {error.line}")
            elif not self._refused:
                self._refused = True
                self._say(f"Ray accepts no drain yet, trying on: {error.line}")
        else:
            self._settled = True
            self._say(f"Ray drains node {node[:8]}")


# How Ray is told.


def drain_by_process(address: str | None, node: str | None) -> Drain:
    """A drain by a process of its own for each attempt.

    Ray's client ends its whole process if the head stays away for a minute, and a call may hang: neither may take the watch
    with it. The watch itself has no need of Ray until then.

    Args:
        address: of Ray's head as HOST:PORT; None for the one of this machine's node.
        node: id in hex; None for this machine's only node.
    """

    def drain(notice: Interruption) -> str:
        deadline_ms = int((notice.deadline or 0) * 1000)
        order = json.dumps([address, node, notice.reason, deadline_ms])
        command = [sys.executable, "-m", __spec__.name, order]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=DRAIN_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"Ray did not answer within {DRAIN_SECONDS:.0f} s") from None
        except OSError as error:
            raise ClusterError(f"cannot start a process: {error}") from None
        lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if done.returncode != 0:
            raise ClusterError(last or f"the process ended with {done.returncode}")
        return last

    return drain


def _drain_once(address: str | None, node: str | None, reason: str, deadline_ms: int) -> str:
    """Drain a node; returns its id in hex. deadline_ms: Unix milliseconds, 0 for none. Raises ClusterError."""
    client = _client(address)
    node = _node(client, node)
    # Private, and what the hidden `ray drain-node` calls; Ray has no public way to drain a node.
    accepted, why = client.drain_node(node, PREEMPTION, reason, deadline_ms)
    if not accepted:
        raise ClusterError(f"node {node[:8]}: {why}")
    return node


def _client(address: str | None) -> Any:
    """Ray's client of the head. Raises ClusterError if this machine has no node, or several of different heads."""
    import ray
    from ray._private import services

    # Private, as is the client itself: ray.init() would start a driver and log in to the cluster as a job.
    if address is None:
        found = sorted(services.find_gcs_addresses())
        if len(found) != 1:
            raise ClusterError(
                f"one Ray node should run here, found {len(found)}: start Ray or give --address"
            )
        address = found[0]
    address = str(services.canonicalize_bootstrap_address(address))
    _knock(address)
    return ray._raylet.GcsClient(address=address)


def _knock(address: str) -> None:
    """Raise ClusterError if nobody listens at HOST:PORT: Ray's client would wait for a minute without a word."""
    host = urlsplit(f"//{address}")
    try:
        socket.create_connection((host.hostname, host.port), ANSWER_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"Ray's head at {address}: {error.strerror or error}") from None


def _node(client: Any, wanted: str | None) -> str:
    """Id in hex of the node to drain: `wanted`, or the one that runs on this machine.

    Raises ClusterError if it is not alive, which Ray would not mind, or if there is none here, or several.
    """
    from ray._private import services
    from ray.core.generated.gcs_pb2 import GcsNodeInfo

    # Private: the list of nodes without a driver, and the ids on the command lines of this machine's raylets, which tell
    # a node from others at its address.
    found = client.get_all_node_info(timeout=5, state_filter=GcsNodeInfo.GcsNodeState.ALIVE)
    alive = {node.hex() for node in found}
    if wanted is not None:
        if wanted not in alive:
            raise ClusterError(f"node {wanted[:8]} is not alive")
        return wanted
    here = sorted(services.find_node_ids() & alive)
    if len(here) != 1:
        raise ClusterError(f"one node of Ray should run here, found {len(here)}: give --node-id")
    return here[0]


def _attempt(order: str) -> int:
    """What the process of one attempt does; returns its exit code."""
    from ray.exceptions import RayError

    address, node, reason, deadline_ms = json.loads(order)
    try:
        print(_drain_once(address, node, reason, deadline_ms))
    except ClusterError as error:
        print(error.line, file=sys.stderr)
        return 1
    except (RayError, OSError, RuntimeError, ValueError) as error:
        print(" ".join(f"{type(error).__name__}: {error}".split())[:300], file=sys.stderr)
        return 1
    return 0


# The command.


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn the cloud's notice that this machine will be taken into Ray's drain of its node.

    Runs beside Ray on each node until SIGTERM. Needs neither root nor a key.
    """

    cloud: Literal["auto", "aws", "gcp", "azure"] = "auto"
    """Whose metadata service to ask; auto: whichever answers."""
    endpoint: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")] = None
    """Another address of that service; AWS_EC2_METADATA_SERVICE_ENDPOINT counts for AWS."""
    interval: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 2.0
    """Between two questions."""
    rebalance: bool = False
    """Drain on AWS's rebalance recommendation already, which may come long before a notice, or alone."""
    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """Ray's head; default RAY_ADDRESS, or the one of the node on this machine."""
    node_id: Annotated[str | None, tyro.conf.arg(metavar="HEX", help_behavior_hint="")] = None
    """The node to drain; default the one on this machine."""


def main(argv: Sequence[str]) -> int:
    """`raymat spot-watch`; ends by SIGTERM with exit code 0. Raises ConfigError."""
    options = parse(Options, argv, "raymat spot-watch")
    if not (math.isfinite(options.interval) and options.interval > 0):
        raise ConfigError(f"--interval must be above 0, got {options.interval}")
    cloud = cloud_of(options, os.environ)
    drain = drain_by_process(address_of(options, os.environ), _node_id(options.node_id))
    watch = Watch(cloud, drain, _say)
    signal.signal(signal.SIGTERM, _end)
    while True:
        watch.step()
        time.sleep(options.interval)


def cloud_of(options: Options, environ: Mapping[str, str]) -> Cloud:
    """The cloud to ask. Raises ConfigError for an address that cannot be one."""
    given = options.endpoint
    aws = given or environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or LINK_LOCAL
    other = _endpoint(given or LINK_LOCAL)
    clouds: dict[str, Cloud] = {
        "aws": Aws(_endpoint(aws), options.rebalance),
        "gcp": Gcp(other),
        "azure": Azure(other),
    }
    return Auto(tuple(clouds.values())) if options.cloud == "auto" else clouds[options.cloud]


def address_of(options: Options, environ: Mapping[str, str]) -> str | None:
    """Where Ray's head is, None to find out from this machine's node. Raises ConfigError."""
    if options.address and "://" in options.address:
        raise ConfigError(f"--address must be HOST:PORT, got {options.address}")
    address = options.address or environ.get("RAY_ADDRESS", "")
    # Of a job server or a client's proxy, neither of which drains; or what asks to find out.
    unusable = "://" in address or address in ("", "auto", "local")
    return None if unusable else address


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"a metadata service is at http://HOST, got {url!r}")
    return url.rstrip("/")


def _node_id(text: str | None) -> str | None:
    if text is not None and (len(text) != 56 or set(text) - set("0123456789abcdef")):
        raise ConfigError(f"--node-id must be 56 hex digits as in `ray list nodes`, got {text!r}")
    return text


def _say(line: str) -> None:
    # A log that cannot be written, for instance on a full disk, is no reason to miss a notice.
    with contextlib.suppress(OSError):
        print(f"{_utc(time.time())} {line}", flush=True)


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(_attempt(sys.argv[1]))
