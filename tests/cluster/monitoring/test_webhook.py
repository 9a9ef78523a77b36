"""Laws of webhooks: a server gets the news as JSON, and one that does not take it costs a run neither time nor its secrets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from raymat.cluster.monitoring.webhook import Webhooks, read_urls
from raymat.errors import ConfigError
from tests.support.heads import wait_for

NEWS = {"kind": "end", "text": "the run is complete"}


class Listener(ThreadingHTTPServer):
    """A server on this machine that keeps what it is told, and answers with `codes`, then always with 200."""

    daemon_threads = True

    def __init__(self, codes: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes, self.told = codes, list[dict[str, Any]]()
        self.hangs: Event | None = None
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/services/SeCrEt"


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.hangs is not None:
            self.server.hangs.wait(30)
        code = self.server.codes.pop(0) if self.server.codes else 200
        if code == 200:
            assert self.headers["Content-Type"] == "application/json"
            self.server.told.append(json.loads(body))
        self.send_response(code)
        if code == 302:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener([])
    yield server
    server.shutdown()
    server.server_close()


def test_each_server_is_told_each_piece_of_news_in_order(
    listener: Listener, said: list[str]
) -> None:
    other = Listener([])
    hooks = Webhooks([listener.url, other.url], said.append)
    hooks.send(NEWS)
    hooks.send({"kind": "failure", "text": "no"})
    hooks.close()
    assert listener.told == other.told == [NEWS, {"kind": "failure", "text": "no"}]
    assert said == []
    other.server_close()


def test_news_is_told_again_when_the_server_is_busy_but_three_times_in_all(
    listener: Listener, said: list[str]
) -> None:
    listener.codes = [503, 429]
    hooks = Webhooks([listener.url], said.append, pauses=(0.01, 0.01))
    hooks.send(NEWS)
    hooks.close()
    assert listener.told == [NEWS]
    listener.codes = [500, 500, 500]
    hooks = Webhooks([listener.url], said.append, pauses=(0.01, 0.01))
    hooks.send(NEWS)
    hooks.close()
    assert listener.told == [NEWS]
    assert listener.codes == []
    assert said == ["notify: 127.0.0.1 was not told of end: HTTP 500"]


@pytest.mark.parametrize("code", [302, 400, 404])
def test_a_refusal_and_a_redirect_are_said_at_once_and_followed_nowhere(
    listener: Listener, said: list[str], code: int
) -> None:
    listener.codes = [code, 200]
    hooks = Webhooks([listener.url], said.append)
    hooks.send(NEWS)
    hooks.close()
    assert listener.told == []
    assert listener.codes == [200]
    assert said == [f"notify: 127.0.0.1 was not told of end: HTTP {code}"]


def test_a_server_that_is_not_there_is_said_in_one_line_without_the_secret(
    said: list[str],
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hooks = Webhooks([f"http://127.0.0.1:{port}/SeCrEt"], said.append, pauses=(0.0, 0.0))
    hooks.send(NEWS)
    hooks.close()
    assert said == ["notify: 127.0.0.1 was not told of end: Connection refused"]


def test_a_server_that_hangs_delays_neither_training_nor_the_end_nor_other_servers(
    listener: Listener, said: list[str]
) -> None:
    hanging = Listener([])
    hanging.hangs = Event()
    began = time.monotonic()
    hooks = Webhooks([hanging.url, listener.url], said.append)
    for _ in range(40):
        hooks.send(NEWS)
    assert time.monotonic() - began < 5
    hooks.close(seconds=0.5)
    assert time.monotonic() - began < 8
    assert len(listener.told) == 40
    assert said == ["notify: 127.0.0.1 was not told of all: it does not answer in time"]
    full = Webhooks([hanging.url], said.append)
    for _ in range(60):
        full.send(NEWS)
    assert set(said[1:]) == {"notify: 127.0.0.1 was not told of end: 50 others wait"}
    assert 9 <= len(said[1:]) <= 10
    full.close(seconds=0.0)
    # Whom nobody waits for any longer posts no more: what waits is dropped.
    wait_for(lambda: not [t for t in threading.enumerate() if t.name == "raymat-webhook"], 30)
    hanging.hangs.set()
    hanging.server_close()


def test_urls_come_from_the_environment_and_a_file_and_each_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "hooks"
    file.write_text("https://b.example/x\nhttps://c.example/y\n")
    environment = {"RAYMAT_NOTIFY": "https://a.example/1  https://b.example/x"}
    assert read_urls(environment, str(file)) == [
        "https://a.example/1",
        "https://b.example/x",
        "https://c.example/y",
    ]
    assert read_urls({}, None) == []


@pytest.mark.parametrize(
    "url", ["hooks.slack.com/SeCrEt", "ftp://host/SeCrEt", "http:///SeCrEt", "http://h:SeCrEt/"]
)
def test_what_is_no_web_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_urls({"RAYMAT_NOTIFY": f"https://a.example/1 {url}"}, None)
    assert refused.value.line == "RAYMAT_NOTIFY: entry 2 is no http:// or https:// URL"


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_urls({}, str(tmp_path / "none"))
    assert refused.value.line == (
        f"--notify-file {tmp_path / 'none'}: cannot be read: No such file or directory"
    )
