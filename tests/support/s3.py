"""A real S3 server on loopback, for tests: rclone's, or another one that the environment names."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raymat.errors import StorageError
from raymat.storage.retry import RetryPolicy
from raymat.storage.store import Store

KEY, SECRET = "ACCESSKEY", "SECRETKEY"
RENEWED = {f"RENEWEDKEY{n}": f"RENEWEDSECRET{n}" for n in range(4)}
"""Further keys that the server takes, and their secrets."""
ANOTHER = "RAYMAT_TEST_S3"
"""Variable with the command of another server ({port} is filled in), or the URL of one that runs. It takes the keys above."""


@dataclass(frozen=True)
class S3Server:
    """A real S3 server on loopback."""

    endpoint: str
    folder: Path | None
    """Where the server keeps each bucket as a folder, if it does."""

    @property
    def options(self) -> dict[str, Any]:
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint}

    @property
    def environment(self) -> dict[str, str]:
        """The same for a process, as the AWS libraries read it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def store(self, bucket: str, name: str = "run") -> Store:
        """A store in a new bucket, made through the server."""
        store = Store.open(f"s3://{bucket}/runs", name, options=self.options)
        store.backend.filesystem.mkdir(bucket)  # type: ignore[attr-defined]
        return store

    def looked_at(self, bucket: str, name: str = "run") -> Store:
        """A store to look at often, which costs the server nothing where it can be had in its folder."""
        if self.folder is not None:
            return Store.open(f"{self.folder}/{bucket}/runs", name)
        return Store.open(f"s3://{bucket}/runs", name, options=self.options)

    def fill(self, bucket: str, files: Mapping[str, bytes]) -> None:
        """Put files into a bucket that is there, by their paths in it."""
        if self.folder is not None:
            for path, data in files.items():
                (self.folder / bucket / path).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / bucket / path).write_bytes(data)
            return
        tops = {path.partition("/")[0] for path in files}
        stores = {top: Store.open(f"s3://{bucket}", top, options=self.options) for top in tops}
        with ThreadPoolExecutor(8) as pool:
            for path in files:
                top, _, rest = path.partition("/")
                pool.submit(stores[top].write, rest, files[path])

    def needs_signatures(self, bucket: str) -> None:
        """Skip a test of wrong keys at a server that takes any."""
        wrong = self.options | {"secret": "WRONG"}
        try:
            Store.open(f"s3://{bucket}", "x", retry=RetryPolicy(total=0), options=wrong).list()
        except StorageError:
            return
        pytest.skip("this server takes any key")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    another = os.environ.get(ANOTHER, "")
    folder = tmp_path_factory.mktemp("s3")
    if another.startswith("http"):
        yield _with_prepared_buckets(S3Server(another, None))
    elif another:
        with _started(shlex.split(another), folder) as endpoint:
            yield _with_prepared_buckets(S3Server(endpoint, None))
    else:
        # It notices folders that it did not make only at its start.
        for name in PREPARED:
            (folder / name).mkdir()
        with _started([*_rclone(), str(folder)], folder) as endpoint:
            yield S3Server(endpoint, folder)


PREPARED = ("prepared-0", "prepared-3", "prepared-keys")
"""Buckets that are there, each for one test: rclone remembers for minutes what a folder held when it was listed."""


def _with_prepared_buckets(server: S3Server) -> S3Server:
    for name in PREPARED:
        server.store(name)
    return server


def _rclone() -> list[str]:
    command = [str(Path(sys.executable).parent / "rclone"), "serve", "s3"]
    command += ["--config", "/dev/null", "--addr", "127.0.0.1:{port}"]
    for key, secret in ({KEY: SECRET} | RENEWED).items():
        command += ["--auth-key", f"{key},{secret}"]
    return command


@contextmanager
def _started(command: list[str], folder: Path) -> Iterator[str]:
    """Run a server; give its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.replace("{port}", str(port)) for word in command]
    with (folder.parent / "s3.log").open("wb") as log:
        server = subprocess.Popen(words, stdout=log, stderr=log)
        try:
            _wait_for(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while server.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the S3 server did not start")
