"""A proxy on loopback that damages a share of the requests to an S3 server, for tests."""

from __future__ import annotations

import contextlib
import http.client
import math
import random
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

FAULTS = (
    "refused",  # this connection and the next one are closed at once
    "reset_request",  # a reset when half of the request's body was read
    "reset_response",  # carried out; a reset when half of the answer was sent
    "error_500",
    "error_503",
    "slow_down",
    "delay",
    "stall",  # carried out by nobody, answered by nothing, until the client gives up
    "stall_request",  # half of the request's body is read, then nothing more
    "stall_response",  # carried out; half of the answer is sent, then nothing more
)
_WITHOUT_BODY = {"reset_request": "reset_response", "stall_request": "stall_response"}
_ANSWERS = {
    "error_500": (500, "InternalError"),
    "error_503": (503, ""),
    "slow_down": (503, "SlowDown"),
}
ALL_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})


@dataclass
class _Request:
    method: str
    path: str
    """As it was sent, with its query."""
    headers: list[tuple[str, str]]
    length: int
    """Bytes of the body."""
    expects: bool
    """Whether the client waits for "100 Continue" before it sends the body, as botocore does."""


class Server(Protocol):
    """A server as the `s3_server` fixture gives it."""

    @property
    def endpoint(self) -> str: ...


class _Gone(Exception):
    """The client closed its connection, or the proxy did."""


@dataclass
class FaultProxy:
    """Stands between clients and `server`; a context manager. Everything passes until a share is set.

    The headers pass unchanged, Host too: a signature covers them. Faults are drawn from `seed`, one
    draw for each request in the order in which they come.
    """

    server: Server
    seed: int = 0
    share: float = 0.0
    """Of the requests, how many are damaged."""
    weights: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(FAULTS, 1.0))
    """How often each fault is drawn, compared with the others."""
    delay: tuple[float, float] = (0.1, 0.2)
    """Seconds that a delayed request waits, from and to."""
    upload_rate: float = math.inf
    """Bytes of a body that are read in a second."""
    refuses: Callable[[_Request], tuple[int, str] | None] = lambda request: None
    """The status and the code by which a request is refused before anything else happens to it."""
    counts: Counter[str] = field(default_factory=Counter)
    """How many requests got each fault; "outage", "not accepted"; and "passed"."""

    def __enter__(self) -> FaultProxy:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._refuse_next = 0
        self._outage: tuple[int, str, frozenset[str]] | None = None
        self._target = urlsplit(self.server.endpoint)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for client in self._open:
                with contextlib.suppress(OSError):  # the client was quicker
                    client.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    @property
    def endpoint(self) -> str:
        """The proxy's URL, in the place of the server's."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def fail_all(self, status: int, code: str, methods: frozenset[str] = ALL_METHODS) -> None:
        """From now on requests of these methods get this error as S3 words it, until `heal`."""
        self._outage = (status, code, methods)

    def accept(self, *keys: str, status: int = 403, code: str = "InvalidAccessKeyId") -> None:
        """From now on only these access keys are good, others get this error."""
        signed = [f"Credential={key}/" for key in keys]

        def refuses(request: _Request) -> tuple[int, str] | None:
            by = dict(request.headers).get("Authorization", "")
            return None if any(key in by for key in signed) else (status, code)

        self.refuses = refuses

    def heal(self) -> None:
        """From now on everything passes."""
        self._outage, self.share = None, 0.0

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="fault-proxy", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                refused = self._refuse_next > 0
                self._refuse_next -= refused
                if not refused:
                    self._open.add(client)
            if refused:
                client.close()
            else:
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        """One connection: request after request, until a fault or the client ends it."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        upstream = http.client.HTTPConnection(self._target.hostname or "", self._target.port)
        reader = client.makefile("rb")
        try:
            while (request := _read_head(reader)) is not None:
                self._handle(client, reader, upstream, request)
        except (_Gone, OSError, http.client.HTTPException):
            pass
        finally:
            with self._lock:
                self._open.discard(client)
                reader.close()
                client.close()
            upstream.close()

    def _handle(
        self,
        client: socket.socket,
        reader: Any,
        upstream: http.client.HTTPConnection,
        request: _Request,
    ) -> None:
        if (refusal := self.refuses(request)) is not None:
            self.counts["not accepted"] += 1
            reader.read(request.length if not request.expects else 0)
            client.sendall(_error(*refusal, request))
            raise _Gone
        fault = self._draw(request)
        if fault == "refused":
            with self._lock:
                self._refuse_next += 1
            raise _Gone
        if fault == "stall":
            self._wait_for_end(client)
        if request.expects:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault in ("reset_request", "stall_request"):
            reader.read(request.length // 2)
            _reset(client) if fault == "reset_request" else self._wait_for_end(client)
        body = self._read_body(reader, request.length)
        if len(body) < request.length:
            raise _Gone
        if fault in _ANSWERS or fault == "outage":
            status, code = _ANSWERS[fault] if fault in _ANSWERS else (self._outage or (500, ""))[:2]
            client.sendall(_error(status, code, request))
            return
        if fault == "delay":
            time.sleep(self._random.uniform(*self.delay))
        answer = _forward(upstream, request, body)
        if fault in ("reset_response", "stall_response"):
            client.sendall(answer[: len(answer) // 2])
            _reset(client) if fault == "reset_response" else self._wait_for_end(client)
        client.sendall(answer)

    def _read_body(self, reader: Any, length: int) -> bytes:
        pieces, piece = [], min(length, 2**18)
        while length and (data := reader.read(min(piece, length))):
            pieces.append(data)
            length -= len(data)
            time.sleep(len(data) / self.upload_rate)
        return b"".join(pieces)

    def _draw(self, request: _Request) -> str:
        with self._lock:
            damaged = self._random.random() < self.share
            (fault,) = self._random.choices(list(self.weights), list(self.weights.values()))
            if request.length < 2:
                fault = _WITHOUT_BODY.get(fault, fault)
            if not damaged:
                fault = "passed"
            if self._outage is not None and request.method in self._outage[2]:
                fault = "outage"
            self.counts[fault] += 1
        return fault

    def _wait_for_end(self, client: socket.socket) -> None:
        """Read nothing, answer nothing, until the client hangs up."""
        poll = select.poll()
        poll.register(client, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        while not poll.poll(100) and not self._closing.is_set():
            pass
        raise _Gone


def _read_head(reader: Any) -> _Request | None:
    lines = []
    while (line := reader.readline()) not in (b"\r\n", b""):
        lines.append(line.decode("latin-1").rstrip("\r\n"))
    if not lines:
        return None
    method, path, _ = lines[0].split(" ", 2)
    headers = [(name, value.strip()) for name, _, value in (h.partition(":") for h in lines[1:])]
    by_name = {name.lower(): value for name, value in headers}
    assert "transfer-encoding" not in by_name  # the length is always known to our writers
    # The proxy has the whole body before it asks the server. This header is never signed.
    kept = [(name, value) for name, value in headers if name.lower() != "expect"]
    length = int(by_name.get("content-length", 0))
    return _Request(method, path, kept, length, expects="expect" in by_name)


def _forward(upstream: http.client.HTTPConnection, request: _Request, body: bytes) -> bytes:
    """The server's answer, whole."""
    upstream.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers:
        upstream.putheader(name, value)
    upstream.endheaders(body)
    response = upstream.getresponse()
    content = response.read()
    headers = [(n, v) for n, v in response.getheaders() if n.lower() != "transfer-encoding"]
    if not any(name.lower() == "content-length" for name, _ in headers):
        headers.append(("Content-Length", str(len(content))))
    return _answer(response.status, headers) + content


def _error(status: int, code: str, request: _Request) -> bytes:
    text = f"<Error><Code>{code}</Code><Message>As the test wants it.</Message></Error>"
    content = f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode() if code else b""
    head = _answer(
        status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))]
    )
    return head if request.method == "HEAD" else head + content


def _answer(status: int, headers: list[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, '')}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _reset(client: socket.socket) -> None:
    """End the connection with a real reset instead of a farewell."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise _Gone
