"""`raymat spot-watch`: drains this machine's Ray node when its cloud announces that it takes the machine back.

Each cloud announces the end of a spot machine to that machine alone, through its metadata service. The watch
asks that service every few seconds and drains this very node in Ray, with the cloud's deadline, which every run on it
hears. It needs neither root nor a key, outlives a silent metadata service and a head that restarts, and drains once for
each notice.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NoReturn
from urllib.parse import urlsplit

from raymat.cluster.spot.drain import Drain, DrainProcess
from raymat.cluster.spot.metadata import (
    LINK_LOCAL,
    Auto,
    Aws,
    Azure,
    Cloud,
    Gcp,
    Interruption,
    utc,
)
from raymat.cluster.spot.metadata_request import MetadataError
from raymat.config.command_line import parse_options
from raymat.config.options import MORE_THAN_0, OptionGroup, Spelling
from raymat.errors import ClusterError, ConfigError


def says_more(new: Interruption, old: Interruption | None) -> bool:
    """Return whether Ray must hear `new` after `old`: the first notice, and one that leaves less time.

    A recommendation has no deadline, and a notice with one may follow. GCP's count from when they are heard, so that each
    is a little later than the one before.
    """
    if old is None:
        return True
    return (new.deadline or math.inf) < (old.deadline or math.inf) - 1


class SpotWatch:
    """The watch of one machine: polls its cloud, drains its node once for each notice, and prints each change."""

    def __init__(
        self,
        cloud: Cloud,
        drain: Drain,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`say` is called with one line for each change; `clock` returns Unix seconds."""
        self._cloud, self._drain, self._say, self._clock = cloud, drain, say, clock
        self._answers: bool | None = None
        self._notice: Interruption | None = None
        self._done = self._refused = self._withdrawn = False

    def poll(self) -> None:
        """Ask once; drain if Ray has not accepted a notice yet, even if the cloud is silent now."""
        try:
            seen = self._cloud.poll()
        except MetadataError as error:
            self._note_answer(False, f"no answer, asking on: {error.line}")
        else:
            self._note_answer(True, "the metadata service answers")
            self._note_notice(seen)
        if self._notice is not None and not self._done:
            self._drain_node(self._notice)

    def _note_answer(self, answers: bool, line: str) -> None:
        if answers != self._answers:
            self._answers = answers
            self._say(line)

    def _note_notice(self, seen: Interruption | None) -> None:
        if seen is None:
            if self._notice is not None and not self._withdrawn:
                self._withdrawn = True
                self._say("the notice was withdrawn" + " (Ray drains on)" * self._done)
                # A notice that Ray accepted stays known, so that the same again is not sent twice.
                self._notice = self._notice if self._done else None
            return
        self._withdrawn = False
        if says_more(seen, self._notice):
            self._notice, self._done, self._refused = seen, False, False
            self._say(f"notice: {seen}")

    def _drain_node(self, notice: Interruption) -> None:
        try:
            node = self._drain(notice)
        except ClusterError as error:
            if notice.deadline is not None and self._clock() >= notice.deadline:
                self._done = True
                self._say(f"Ray accepted no drain before the deadline: {error.line}")
            elif not self._refused:
                self._refused = True
                self._say(f"Ray accepts no drain yet, trying on: {error.line}")
        else:
            self._done = True
            self._say(f"Ray drains node {node[:8]}")


@dataclass(frozen=True, kw_only=True)
class Options(OptionGroup):
    """Turn the cloud's notice that this machine will be taken into Ray's drain of its node.

    Runs beside Ray on each node until SIGTERM. Needs neither root nor a key.
    """

    cloud: Literal["auto", "aws", "gcp", "azure"] = "auto"
    """Whose metadata service to ask; auto: whichever answers."""
    endpoint: Annotated[str | None, Spelling("URL")] = None
    """Another address of that service; AWS_EC2_METADATA_SERVICE_ENDPOINT counts for AWS."""
    interval: Annotated[float, Spelling("SECONDS"), MORE_THAN_0] = 2.0
    """Between two questions."""
    rebalance: bool = False
    """Drain on AWS's rebalance recommendation already, which may come long before a notice, or alone."""
    address: Annotated[str | None, Spelling("HOST:PORT")] = None
    """Ray's head; default RAY_ADDRESS, or the one of the node on this machine."""
    node_id: Annotated[str | None, Spelling("HEX")] = None
    """The node to drain; default the one on this machine."""


def main(argv: Sequence[str]) -> int:
    """Run `raymat spot-watch`, until SIGTERM ends it with exit code 0. Raises ConfigError."""
    options = parse_options(Options, argv, "raymat spot-watch")
    cloud = cloud_of(options, os.environ)
    drain = DrainProcess(address_of(options, os.environ), _node_id(options.node_id), _say)
    watch = SpotWatch(cloud, drain, _say)
    signal.signal(signal.SIGTERM, _end)
    try:
        while True:
            drain.prepare()
            watch.poll()
            time.sleep(options.interval)
    finally:
        drain.close()


def cloud_of(options: Options, environ: Mapping[str, str]) -> Cloud:
    """Return the cloud to ask. Raises ConfigError for an address that cannot be one."""
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
    """Return where Ray's head is, None to find out from this machine's node. Raises ConfigError."""
    if options.address and "://" in options.address:
        raise ConfigError(f"--address must be HOST:PORT, got {options.address}")
    address = options.address or environ.get("RAY_ADDRESS", "")
    # The address of a job server or of a client's proxy, neither of which drains; or a word that means to find out.
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
        print(f"{utc(time.time())} {line}", flush=True)


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(0)
