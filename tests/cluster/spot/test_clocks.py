"""Machines whose clock is wrong by minutes, against the clock of the cloud that takes them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raymat.cluster.spot.metadata import Aws, Azure, Cloud, Gcp, utc

LEFT = 120.0
"""Seconds from the notice to the machine's end."""


class Metadata(ThreadingHTTPServer):
    """The metadata services of all clouds, with a clock that is ahead of this machine's by `ahead` seconds."""

    ahead = 0.0
    dates = True


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self) -> None:
        end = time.time() + self.server.ahead + LEFT
        self.send_response_only(200)
        if self.server.dates:
            self.send_header("Date", self.date_time_string(time.time() + self.server.ahead))
        self.end_headers()
        event = {
            "EventType": "Preempt",
            "Resources": ["m"],
            "NotBefore": self.date_time_string(end),
        }
        answers = {
            "token": "secret",
            "instance-action": json.dumps({"action": "terminate", "time": utc(end)}),
            "scheduledevents": json.dumps({"Events": [event]}),
            "name": "m",
            "preempted": "TRUE",
        }
        self.wfile.write(answers[self.path.partition("?")[0].rpartition("/")[2]].encode())

    do_PUT = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def seconds_left(metadata: Metadata, kind: type[Aws] | type[Gcp] | type[Azure]) -> float:
    cloud: Cloud = kind(f"http://127.0.0.1:{metadata.server_port}")
    notice = cloud.poll()
    assert notice is not None
    assert notice.deadline is not None
    return notice.deadline - time.time()


@pytest.mark.parametrize("ahead", [-300.0, -3.5, 0.0, 3.5, 300.0])
@pytest.mark.parametrize("kind", [Aws, Azure])
def test_a_deadline_is_as_far_away_as_the_cloud_means_it_whatever_this_clock_shows(
    metadata: Metadata, kind: type[Aws] | type[Azure], ahead: float
) -> None:
    metadata.ahead = ahead
    assert seconds_left(metadata, kind) == pytest.approx(LEFT, abs=2.5)


def test_a_deadline_that_counts_from_the_notice_needs_no_clock(metadata: Metadata) -> None:
    metadata.ahead = 300.0
    assert seconds_left(metadata, Gcp) == pytest.approx(30.0, abs=2.5)


def test_a_service_that_tells_no_time_is_taken_at_its_word(metadata: Metadata) -> None:
    metadata.dates, metadata.ahead = False, 300.0
    assert seconds_left(metadata, Aws) == pytest.approx(LEFT + 300.0, abs=2.5)
