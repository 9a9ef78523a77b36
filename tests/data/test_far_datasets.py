"""A dataset on a web server: one that does not answer is given up soon, one that fails is never taken for a smaller one."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from raymat.data.dataset.discovery import build_listing
from raymat.data.dataset.image_folder import Folder, UnreachableError
from raymat.errors import DataError
from raymat.storage import access, filesystems
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store
from tests.support.web_server import serving

DEAD = "http://127.0.0.1:9"
AT_ONCE = RetryPolicy(attempts=3, first=0)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "STRANGER_SECONDS", 0.3)
    monkeypatch.setattr(filesystems, "SILENT_SECONDS", 0.4)


@contextmanager
def silence() -> Iterator[tuple[str, list[socket.socket]]]:
    """Yield the URL of a server that accepts connections and says nothing, and those that it has."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", taken
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in taken:
                each.close()


def test_a_server_that_says_nothing_is_asked_once_for_each_of_its_folders_at_most() -> None:
    began = time.monotonic()
    with silence() as (url, taken):
        line = rf"^cannot list {url}/data: the storage does not answer \(.+\); check the network"
        with pytest.raises(DataError, match=line):
            build_listing(f"{url}/data", f"{url}/walls")
        assert len(taken) == 1
        with pytest.raises(UnreachableError, match=rf"^cannot read {url}/a\.jpg: the storage does"):
            Folder(url).read("a.jpg")
        assert len(taken) == 2
    assert time.monotonic() - began < 5


def test_a_server_that_refuses_is_given_up_after_a_few_tries_unless_it_has_answered_before() -> (
    None
):
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"^cannot list {DEAD}/data: the storage does not answer"):
        build_listing(f"{DEAD}/data", f"{DEAD}/walls")
    with pytest.raises(DataError, match=rf"^cannot read {DEAD}/a\.jpg after \d attempts: the st"):
        Folder(DEAD).read("a.jpg")
    assert time.monotonic() - began < 5
    patient = Folder(DEAD, RetryPolicy(attempts=30, first=0.03, longest=0.03), answered=True)
    with pytest.raises(DataError, match=rf"^cannot read {DEAD}/a\.jpg after 30 attempts: "):
        patient.read("a.jpg")


class Pages(BaseHTTPRequestHandler):
    """Serves listings as web servers make them; `broken` is answered with 503."""

    pages = {  # noqa: RUF012
        "/data": ["?C=N;O=D", "/", "../", "./", "clip%201/", "broken/", "a.jpg"],
        "/data/clip%201": ["/data/", "b.png"],
    }
    broken = ""

    def do_GET(self) -> None:
        here = self.path.rstrip("/")
        if here == self.broken or here not in self.pages:
            self.send_error(503 if here == self.broken else 404)
            return
        page = "".join(f'<a href="{link}">{link}</a>' for link in self.pages[here]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with serving(Pages) as url:
        yield url


def test_the_pages_of_a_web_server_are_followed_without_their_other_links(pages: str) -> None:
    assert Folder(pages).find("data") == {"a.jpg": -1, "clip%201/b.png": -1}
    assert Folder(pages).find("nowhere") is None


def test_a_folder_that_cannot_be_listed_is_never_taken_for_an_empty_one(
    pages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pages, "broken", "/data/broken")
    monkeypatch.setattr("raymat.data.dataset.image_folder.RetryPolicy", lambda: AT_ONCE)
    with pytest.raises(
        UnreachableError, match=rf"^cannot list {pages}/data: .*overloaded or fails"
    ):
        Folder(pages).find("data")
    store = Store.open(pages, "data", retry=AT_ONCE)
    with pytest.raises(Exception, match=re.escape(f"cannot list {pages}/data: ")):
        store.list()


def test_an_archive_on_a_server_that_says_nothing_is_not_called_missing() -> None:
    with (
        silence() as (url, taken),
        pytest.raises(DataError, match=r"^cannot open zip://::.*: the storage does not answer \("),
    ):
        Folder(f"zip://::{url}/pairs.zip")
    assert len(taken) == 2  # fsspec asks for the size in two ways
